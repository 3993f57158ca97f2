"""The coordinator's service: rosters that it takes over or not, runs that lie in its kit."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.kits import make_federation
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError
from fedllm.identity.kits import read_kit
from fedllm.identity.provisioning import provision, revoke
from fedllm_server import jobs, service
from fedllm_server.service import Service


class Link:
    """Stands for the SuperLink; ``refuse`` names a party whose key was revoked before."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.roster = ""
        self.refuse: str | None = None

    def register(self, keys: dict[str, bytes], roster: str) -> None:
        self.names, self.roster = set(keys) - {self.refuse}, roster
        if self.refuse:
            raise ConfigError(f"the node keys of {self.refuse} were revoked before and stay out")


@pytest.fixture
def place(tmp_path: Path) -> SimpleNamespace:
    make_federation(tmp_path / "fed")
    kit = tmp_path / "fed" / "kits" / "coordinator"
    said: list[str] = []
    made = Service(read_kit(kit, "coordinator"), ("127.0.0.1", 0), said.append)
    link = Link()

    def follow() -> None:
        # The clock of the file system may be coarser than two writes are apart.
        moment = os.stat(kit / "roster.json").st_mtime_ns + 1
        os.utime(kit / "roster.json", ns=(moment, moment))
        made._follow_roster(link)

    made._follow_roster(link)
    return SimpleNamespace(folder=tmp_path / "fed", kit=kit, link=link, said=said, follow=follow)


def test_a_revocation_is_in_force_at_once(place):
    revoke(place.folder, "anne")
    place.follow()
    assert place.link.names == {"bob", "authority"}
    assert "roster version 2 is in force" in place.said[-1]


def test_a_roster_that_is_not_used_is_not_handed_out(place):
    """A new address, and a certificate that does not name it: sites would all go there."""
    before = place.link.roster
    certificate = (place.kit / "server.pem").read_bytes()
    config = read_config(place.folder, hosts=["127.0.0.2"])
    provision(config, place.folder)
    (place.kit / "server.pem").write_bytes(certificate)
    place.follow()
    assert "not used" in place.said[-1]
    assert place.link.roster == before
    (place.kit / "roster.json").write_bytes(b"\xff{")
    place.follow()
    assert place.link.roster == before


def read_config(folder: Path, **coordinator: Any) -> Any:
    from support.kits import federation_config

    return federation_config(coordinator=coordinator)


def test_one_partys_old_key_does_not_end_the_service(place):
    place.link.refuse = "anne"
    revoke(place.folder, "bob")
    place.follow()
    assert place.link.names == {"authority"}
    assert any("anne" in words for words in place.said)


def test_a_stray_file_among_the_runs_is_no_run(tmp_path):
    folder = jobs.runs_folder(tmp_path)
    (folder / "mine").mkdir(parents=True)
    jobs.write_job(folder / "mine", jobs.Job("mine", "queued", "2026-01-01"))
    (folder / ".notes").write_text("x")
    assert [job.name for _, job in jobs.all_jobs(tmp_path)] == ["mine"]


@pytest.mark.parametrize("listen", ["9092", "host", "host:", ":9092", "host:99999", "host:-1"])
def test_what_is_no_address_to_listen_on_is_named(place, listen):
    done = CliRunner().invoke(app, ["server", "start", "--kit", str(place.kit), "--listen", listen])
    assert isinstance(done.exception, ConfigError)
    assert "HOST:PORT" in str(done.exception)


@pytest.mark.parametrize(
    ("host", "listens"),
    [("2001:db8::7", "::"), ("192.0.2.7", "0.0.0.0"), ("::1", "::1"), ("127.0.0.1", "127.0.0.1")],
)
def test_it_listens_where_its_address_can_be_reached(tmp_path, monkeypatch, host, listens):
    make_federation(tmp_path / "fed", coordinator={"hosts": [host]})
    asked = []

    class Recorder:
        def __init__(self, kit, listen, say) -> None:
            asked.append(listen)

        def run(self, stop) -> None:
            pass

    monkeypatch.setattr(service, "Service", Recorder)
    kit = tmp_path / "fed" / "kits" / "coordinator"
    done = CliRunner().invoke(app, ["server", "start", "--kit", str(kit)])
    assert done.exit_code == 0, done.output
    assert asked == [(listens, 9092)]
