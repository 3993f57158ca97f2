"""A coordinator's SuperLink that does not start, or does not take a run."""

from __future__ import annotations

import threading

import pytest
from support.kits import make_federation

from fedllm.errors import ConfigError, FedllmError
from fedllm.federation.transport.listener import Listener, server_context
from fedllm.federation.transport.superlink import SuperLink, Ticket
from fedllm.identity.kits import read_kit


@pytest.fixture
def link(tmp_path):
    make_federation(tmp_path / "operator")
    kit = read_kit(tmp_path / "operator" / "kits" / "coordinator", "coordinator")
    made = SuperLink(
        tmp_path / "state" / "superlink.sqlite",
        Listener("127.0.0.1", 0, kit.server_certificate, kit.server_key),
    )
    yield made
    made._public_socket.close()
    made._private_socket.close()


def test_listeners_that_end_at_once_are_not_waited_for(link):
    link._thread = threading.Thread(target=lambda: None)
    with pytest.raises(FedllmError, match="the listeners did not start"):
        link.start()
    assert not link.alive


def test_a_run_that_flowers_state_does_not_take_is_an_error(link, monkeypatch):
    ticket = link.open_run()
    assert ticket.address == link.private_address
    assert ticket.token not in repr(ticket)
    assert repr(ticket) == f"Ticket({ticket.address!r}, {ticket.run_id}, <hidden>)"
    monkeypatch.setattr(link._state, "activate_task", lambda task: False)
    with pytest.raises(FedllmError, match="did not take a new run"):
        link.open_run()
    monkeypatch.setattr(link._state, "claim_task", lambda task: None)
    with pytest.raises(FedllmError, match="did not take a new run"):
        link.open_run()


def test_tls_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "x.pem").write_text("nothing")
    for name in ("none.pem", "x.pem"):
        listener = Listener("127.0.0.1", 0, tmp_path / name, tmp_path / name)
        with pytest.raises(ConfigError, match="cannot be read") as caught:
            server_context(listener)
        assert name in caught.value.message


def test_a_ticket_hides_its_token():
    assert "secret" not in repr(Ticket("a", 1, 2, "secret"))
