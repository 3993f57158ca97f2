"""A coordinator's SuperLink that does not start, or does not take a run."""

from __future__ import annotations

import threading

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.common.constant import Status
from support.kits import make_federation

from fedllm.errors import ConfigError, FedllmError
from fedllm.federation.transport import superlink
from fedllm.federation.transport.listener import Listener, server_context
from fedllm.federation.transport.superlink import SuperLink, Ticket
from fedllm.identity.kits import read_kit


@pytest.fixture
def link(tmp_path):
    make_federation(tmp_path / "operator")
    kit = read_kit(tmp_path / "operator" / "kits" / "coordinator", "coordinator")
    made = SuperLink(
        tmp_path / "kit" / "state" / "superlink.sqlite",
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


def unfinished(link) -> set[int]:
    states = [Status.PENDING, Status.STARTING, Status.RUNNING]
    return {run.run_id for run in link._state.get_run_info(statuses=states)}


def test_runs_that_were_left_are_ended(link):
    left = {link.open_run().run_id for _ in range(2)}
    assert unfinished(link) == left
    link.close_runs()
    assert unfinished(link) == set()
    later = link.open_run().run_id
    assert unfinished(link) == {later}


def node_key() -> bytes:
    return (
        ec.generate_private_key(ec.SECP384R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def test_exactly_the_nodes_of_the_roster_are_let_in(link):
    keys = {name: node_key() for name in ("bob", "anne", "carl")}
    link.register(keys, "the roster")
    assert [(node.name, node.online, node.since) for node in link.nodes()] == [
        (name, False, None) for name in ("anne", "bob", "carl")
    ]
    assert all(link._node_key(key) for key in keys.values())
    assert not link._node_key(node_key())
    assert link._roster == b"the roster"
    gone = keys.pop("bob")
    link.register(keys)
    assert [node.name for node in link.nodes()] == ["anne", "carl"]
    assert not link._node_key(gone)
    assert link._roster == b""
    # A key that was out once stays out, and the others are in force.
    new = node_key()
    with pytest.raises(ConfigError) as caught:
        link.register({**keys, "bob": gone, "dora": new}, "newer")
    assert caught.value.message == "the node keys of bob were revoked before and stay out"
    assert "enroll with a new kit" in caught.value.remedy
    assert [node.name for node in link.nodes()] == ["anne", "carl", "dora"]
    assert link._node_key(new)
    assert not link._node_key(gone)
    assert link._roster == b"newer"


def test_a_node_that_comes_again_turns_the_one_before_out(link):
    keys = {name: node_key() for name in ("anne", "bob")}
    link.register(keys)
    nodes = {node.name: node.node_id for node in link.nodes()}
    for number in nodes.values():
        assert link._state.activate_node(number, 3600)
    assert [node.online for node in link.nodes()] == [True, True]
    link._turn_over(keys["anne"])
    link._turn_over(node_key())
    anne, bob = link.nodes()
    assert (anne.online, bob.online) == (False, True)
    assert anne.since
    assert bob.since


def test_flower_is_asked_to_know_its_nodes_and_to_fetch_and_record_nothing(tmp_path):
    asked = superlink._lifespan_config(tmp_path / "superlink.sqlite")
    assert asked.enable_supernode_auth is True
    assert asked.runtime_dependency_install is False
    assert asked.enable_event_log is False
    assert asked.simulation is False
    # Its apps stand behind sockets of this program's own; the public one has TLS.
    assert (asked.host, asked.insecure) == ("127.0.0.1", True)
    other = superlink._lifespan_config(tmp_path / "superlink.sqlite")
    assert len(asked.superexec_auth_secret) == 32
    assert asked.superexec_auth_secret != other.superexec_auth_secret
