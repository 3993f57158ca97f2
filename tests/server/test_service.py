"""The coordinator's service: rosters that it takes over or not, runs that lie in its kit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.kits import make_federation
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError, FedllmError
from fedllm.federation.transport.superlink import Ticket
from fedllm.identity.kits import read_kit
from fedllm.identity.provisioning import provision, revoke
from fedllm.runs.job import write_outcome
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


class Child:
    """Stands for the process of a run; ``code`` is None while it lives."""

    def __init__(self) -> None:
        self.code: int | None = None

    def poll(self) -> int | None:
        return self.code

    @property
    def returncode(self) -> int | None:
        return self.code


@pytest.fixture
def works(place, monkeypatch):
    """A service with one queued run, a clock that a test moves and no process."""
    folder = jobs.runs_folder(place.kit) / "mine"
    folder.mkdir(parents=True)
    jobs.write_job(folder, jobs.Job("mine", "queued", "2026-01-01"))
    place.clock, place.started, place.reported, place.closed = 100.0, [], [], []

    def start(module, arguments, ticket):
        place.started.append((module, arguments, Child()))
        return place.started[-1][2]

    def ends(child, grace_s):
        child.code = -15

    monkeypatch.setattr(service, "start_module", start)
    monkeypatch.setattr(service, "end", ends)
    monkeypatch.setattr(service, "time", SimpleNamespace(monotonic=lambda: place.clock))
    monkeypatch.setattr(service.Service, "_report", lambda *_, **how: place.reported.append(how))
    place.link.open_run = lambda: Ticket("127.0.0.1:1", 1, 2, "secret")
    place.link.close_runs = lambda: place.closed.append(True)
    place.service = made = Service(
        read_kit(place.kit, "coordinator"), ("127.0.0.1", 0), place.said.append
    )
    place.step = lambda: made._step(place.link)
    place.job = lambda: jobs.read_job(folder)
    place.run = folder
    return place


def test_a_run_is_begun_once_and_watched(works):
    works.step()
    ((module, arguments, child),) = works.started
    assert (module, arguments) == ("fedllm_server.runner", [str(works.kit), str(works.run)])
    assert (works.job().status, works.job().starts) == ("running", 1)
    assert works.said[-1] == "run 'mine': begun"
    works.step()
    assert len(works.started) == 1
    assert works.closed == []
    write_outcome(works.run, None)
    child.code = 0
    works.step()
    assert works.job().status == "finished"
    assert works.closed == [True]
    works.step()
    assert len(works.started) == 1


def test_a_run_that_fails_says_why(works):
    works.step()
    error = {"kind": "PeerError", "message": "nobody came", "remedy": "wait"}
    write_outcome(works.run, error)
    works.started[0][2].code = 1
    works.step()
    assert (works.job().status, works.job().error) == ("failed", error)
    assert works.said[-1] == "run 'mine': failed: nobody came -> wait"


@pytest.mark.parametrize("begun", [False, True])
def test_a_cancelled_run_is_ended_or_never_begun(works, begun):
    if begun:
        works.step()
    (works.run / "cancel").touch()
    works.step()
    assert works.job().status == "cancelled"
    assert [child.code for _, _, child in works.started] == [-15] * begun


def test_a_process_that_dies_is_started_again_later_each_time_and_not_for_ever(works):
    waits = []
    for _ in range(5):
        works.step()
        works.started[-1][2].code = -9
        works.step()
        if works.job().status == "failed":
            break
        ended = works.clock
        count = len(works.started)
        works.clock = works.service._not_before - 0.5
        works.step()
        assert len(works.started) == count
        works.clock = works.service._not_before
        waits.append(works.clock - ended)
    assert waits == [2.0, 4.0, 8.0, 16.0]
    assert len(works.started) == 5
    assert "died 5 times in round 1" in works.job().error["message"]
    assert "run 'mine': its process ended with code -9" in works.said
    assert "run 'mine': goes on" in works.said


def test_a_process_that_dies_after_a_finished_round_has_its_starts_again(works):
    for number in range(1, 8):
        works.step()
        (works.run / "checkpoints" / f"round-{number:05d}").mkdir(parents=True)
        works.started[-1][2].code = -9
        works.step()
        assert works.service._not_before - works.clock == 2.0
        works.clock = works.service._not_before
    assert works.job().status == "running"


def test_the_status_is_written_every_two_seconds(works):
    works.service._status_at = works.clock
    works.clock += 2.0
    works.step()
    assert works.reported == []
    works.clock += 0.5
    works.step()
    assert works.reported == [{"running": True}]


@pytest.fixture
def served(works, monkeypatch):
    """`works`, run as a service: a SuperLink that stands still, and a stop after its steps."""
    link, works.told = works.link, []
    link.alive, link.port = True, 9092
    link.start = lambda: works.told.append("start")
    link.stop = lambda: works.told.append("stop")
    monkeypatch.setattr(service, "SuperLink", lambda *_: link)
    monkeypatch.setattr(
        service, "end", lambda child, grace_s: works.told.append(("end", child, grace_s))
    )
    waits = iter([False, True])
    works.serve = lambda: works.service.run(SimpleNamespace(wait=lambda _: next(waits)))
    return works


def test_a_service_that_is_stopped_ends_its_run_and_says_so(served):
    served.serve()
    child = served.started[0][2]
    # Time for the run to end by itself, less than a service manager gives the coordinator.
    assert served.told == ["start", ("end", child, 2.0), "stop"]
    assert served.reported[-1] == {"running": False}
    assert served.said[0] == "listening on 127.0.0.1:9092"
    assert served.said[-1] == "stopped"
    # Runs that an earlier coordinator left are closed before anything else.
    assert served.closed == [True]
    # It goes on when the coordinator starts again.
    assert served.job().status == "running"


def test_listeners_that_ended_end_the_service(served):
    served.link.alive = False
    with pytest.raises(FedllmError, match="the listeners ended"):
        served.serve()
    assert served.told == ["start", "stop"]
    assert served.reported == [{"running": False}]


def test_a_service_begins_with_a_certificate_and_a_roster_that_it_can_read(tmp_path):
    make_federation(tmp_path / "fed")
    kits = tmp_path / "fed" / "kits"
    with pytest.raises(ConfigError, match="has no server certificate"):
        Service(read_kit(kits / "anne", "site"), ("127.0.0.1", 0), print)
    said: list[str] = []
    made = Service(read_kit(kits / "coordinator", "coordinator"), ("127.0.0.1", 0), said.append)
    (kits / "coordinator" / "roster.json").write_bytes(b"{")
    with pytest.raises(ConfigError):
        made._follow_roster(Link())
    assert "the new roster is not used" in said[0]


def test_a_run_that_cannot_be_read_has_no_rounds_in_the_status(tmp_path):
    assert service._rounds(tmp_path) == 0
    assert service._round(tmp_path) == 0


def test_who_follows_a_run_hears_all_of_it_until_it_ends(tmp_path, monkeypatch):
    from fedllm.runs.names import PROGRESS
    from fedllm_server import following

    with pytest.raises(ConfigError, match="there is no run in"):
        following.follow(tmp_path, SimpleNamespace(close=lambda: None))
    told: list[str] = []
    waits: list[float] = []
    lines = [b"one\n", b"two\nthr", b"ee\n", b"cut"]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        with (tmp_path / PROGRESS).open("ab") as stream:
            stream.write(lines[len(waits) - 1])
        if len(waits) == len(lines):
            jobs.write_job(tmp_path, jobs.Job("bank", "finished", "2026-01-01"))

    jobs.write_job(tmp_path, jobs.Job("bank", "running", "2026-01-01"))
    monkeypatch.setattr(following, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))
    monkeypatch.setattr(following, "read_config", lambda folder: None)
    monkeypatch.setattr(
        following, "replay", lambda line, where, config, observer: told.append((line, where))
    )
    closed: list[bool] = []
    opened: list = []
    right = Path.open

    def opens(path, *arguments, **keywords):
        stream = right(path, *arguments, **keywords)
        if path == tmp_path / PROGRESS and arguments == ("rb",):
            opened.append(stream)
        return stream

    monkeypatch.setattr(Path, "open", opens)
    ended = following.follow(tmp_path, SimpleNamespace(close=lambda: closed.append(True)))
    assert [stream.closed for stream in opened] == [True]
    assert (ended.status, closed, len(waits)) == ("finished", [True], 4)
    where = f"{tmp_path / PROGRESS}, line "
    assert told == [(b"one", f"{where}1"), (b"two", f"{where}2"), (b"three", f"{where}3")]


def test_a_service_listens_steps_and_ends_with_its_last_status(place, monkeypatch):
    calls: list[str] = []

    class Listening(Link):
        port, alive = 4711, True

        def __init__(self, database, listener, shelf) -> None:
            super().__init__()
            assert database.name == "superlink.sqlite"
            assert json.loads(shelf.listed()) == []

        def register(self, keys, roster) -> None:
            calls.append("register")

        def nodes(self) -> list:
            return []

        def __getattr__(self, name: str):
            return lambda: calls.append(name)

    class Stop:
        waits = 0

        def wait(self, seconds: float) -> bool:
            self.waits += 1
            if self.waits == 2:
                # The operator's new roster arrives.
                moment = os.stat(place.kit / "roster.json").st_mtime_ns + 1
                os.utime(place.kit / "roster.json", ns=(moment, moment))
            return self.waits > 2

    monkeypatch.setattr(service, "SuperLink", Listening)
    said: list[str] = []
    made = Service(read_kit(place.kit, "coordinator"), ("127.0.0.1", 0), said.append)
    made.run(Stop())
    assert calls == ["close_runs", "register", "start", "register", "stop"]
    assert said == ["listening on 127.0.0.1:4711", "roster version 1 is in force", "stopped"]
    status = json.loads((place.kit / "state" / "status.json").read_text())
    assert status["running"] is False
    Listening.alive = False
    with pytest.raises(FedllmError, match="the listeners ended"):
        made.run(Stop())
    assert calls[-1] == "stop"
