"""Sites and key authority behind a SuperLink: who is waited for, asked, believed, and how told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedllm.errors import PeerError
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.messages import (
    Join,
    Joined,
    JoinedHeader,
    JoinHeader,
    OpenRound,
    OpenRoundHeader,
    RoundOpened,
    RoundOpenedHeader,
)
from fedllm.federation.transport.engines import LocalGrid, task_identity
from fedllm.federation.transport.flower import SERVER_NODE, answer
from fedllm_server import remote_parties
from fedllm_server.remote_parties import RemoteAuthority, RemoteSites

KEYS = {"anne": b"A", "bob": b"B"}
NODES = {b"A": 100, b"B": 101, b"stranger": 102}
JOIN = Join(JoinHeader(run="run-1", round=1, config="", labels=(), model="", adapter_length=1))


class Presence:
    """Who is connected, as the test says; a mark changes when a node comes anew."""

    def __init__(self, **marks: str) -> None:
        self.marks = marks

    def keys(self) -> dict[bytes, int]:
        return {
            KEYS.get(name, b"stranger"): NODES[KEYS.get(name, b"stranger")] for name in self.marks
        }

    def mark(self, node: int) -> str | None:
        names = {NODES[KEYS.get(name, b"stranger")]: mark for name, mark in self.marks.items()}
        return names.get(node)


def member(name: str) -> CohortMember:
    return CohortMember(name=name, mask_key="", signature="")


def app_of(says: dict[int, str | None]) -> ClientApp:
    app = ClientApp()

    @app.query("join")
    def join(message: Message, context) -> Message:
        said = says[message.metadata.dst_node_id]
        if said is None:
            raise RuntimeError("secret")
        joined = Joined(JoinedHeader(site=said, member=member(said) if said else None))
        return answer(message, lambda header, blobs: joined.to_wire())

    @app.query("open_round")
    def open_round(message: Message, context) -> Message:
        said = says[message.metadata.dst_node_id]
        if said is None:
            raise RuntimeError("secret")
        opened = RoundOpened(RoundOpenedHeader(statement=said, signature=""), b"key")
        return answer(message, lambda header, blobs: opened.to_wire())

    return app


def sites(presence, says=None, *, least=2, timeout_s=60.0, said=None):
    grid = LocalGrid(app_of(says or {100: "anne", 101: "bob"}), 3)
    hear = (said if said is not None else []).append
    return RemoteSites(grid, presence, KEYS, least, timeout_s, hear)


def joined(remote) -> list:
    with task_identity(1, SERVER_NODE):
        return list(remote.join(JOIN))


def test_those_that_are_there_are_asked_by_the_names_of_their_keys():
    answers = joined(sites(Presence(anne="monday", bob="monday", stranger="monday")))
    assert [(name, found.header.member.name) for name, found in answers] == [
        ("anne", "anne"),
        ("bob", "bob"),
    ]


def test_a_site_is_admitted_by_its_node_and_else_is_not_connected():
    remote = sites(Presence(anne="monday", bob="monday"))
    joined(remote)
    remote.admit("anne", "anne")
    assert remote._known(("anne",)) == {"anne": 100}
    with pytest.raises(PeerError, match="'bob' is not connected any more"):
        remote._known(("bob",))


def test_a_node_that_says_it_is_another_site_is_not_believed():
    (anne, one), (bob, other) = joined(
        sites(Presence(anne="monday", bob="monday"), {100: "bob", 101: "bob"})
    )
    assert (anne, bob) == ("anne", "bob")
    assert one.message == "the node of 'anne' says that it is 'bob'"
    assert other.header.member.name == "bob"


def test_who_fails_or_does_not_take_part_is_passed_on():
    (_, failed), (_, without) = joined(
        sites(Presence(anne="monday", bob="monday"), {100: None, 101: ""})
    )
    assert isinstance(failed, PeerError)
    assert failed.message == "anne: RuntimeError"
    assert without.header.member is None


def test_too_few_sites_are_waited_for_and_named(monkeypatch):
    """The clock stands still until something was said; then another site comes, or none does."""
    said: list[str] = []
    presence = Presence(anne="monday")
    waits = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            presence.marks["bob"] = "monday"

    monkeypatch.setattr(remote_parties, "time", SimpleNamespace(monotonic=lambda: 0, sleep=sleep))
    assert len(joined(sites(presence, said=said))) == 2
    words = "1 sites are connected, 2 are needed; not there: bob"
    (told,) = said
    assert told.startswith(f"waiting: {words}; at those, see whether `fedllm client start` runs")
    assert told.endswith("1 minutes are left")
    assert len(waits) == 3
    monkeypatch.setattr(
        remote_parties,
        "time",
        SimpleNamespace(monotonic=iter(range(99)).__next__, sleep=lambda seconds: None),
    )
    with pytest.raises(PeerError) as refused:
        joined(sites(Presence(anne="monday"), timeout_s=5.0))
    assert refused.value.message == words


def clock_of(monkeypatch, step_s: float) -> None:
    """Each wait takes so many seconds."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += step_s

    clock = SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
    monkeypatch.setattr(remote_parties, "time", clock)


def test_who_is_waited_for_is_told_again_every_minute(monkeypatch):
    clock_of(monkeypatch, 10.0)
    said: list[str] = []
    grid = LocalGrid(app_of({}), 3)
    shown = {"anne": "Sankt Änne (anne)", "bob": "bob"}.__getitem__
    remote = RemoteSites(grid, Presence(), KEYS, 2, 185.0, said.append, shown)
    with pytest.raises(PeerError, match=r"not there: Sankt Änne \(anne\), bob"):
        joined(remote)
    assert [words.rpartition(", ")[2] for words in said] == [
        f"{left} minutes are left" for left in (3, 2, 1, 0)
    ]
    assert all("0 sites are connected, 2 are needed; not there: Sankt" in words for words in said)
    said = []
    with pytest.raises(PeerError):
        opened(authority(Presence(), {}, said, timeout_s=185.0))
    assert len(said) == 4


def test_who_came_anew_or_left_changes_who_takes_part():
    presence = Presence(anne="monday", bob="monday")
    remote = sites(presence, least=1)
    assert remote.changed(), "nobody was asked yet"
    for name, _ in joined(remote):
        remote.admit(name, name)
    assert not remote.changed()
    presence.marks["bob"] = "tuesday"
    assert remote.changed()
    joined(remote)
    assert not remote.changed(), "joining begins anew; nobody is admitted, and all were asked"
    remote.admit("anne", "anne")
    remote.admit("bob", "bob")
    del presence.marks["bob"]
    assert remote.changed()


def authority(presence, says, said, timeout_s=60.0) -> RemoteAuthority:
    return RemoteAuthority(LocalGrid(app_of(says), 3), presence, b"A", timeout_s, said.append)


def opened(remote):
    with task_identity(1, SERVER_NODE):
        return remote.open_round(OpenRound(OpenRoundHeader(statement="", members=()), b""))


def test_the_authority_answers_through_its_node():
    said: list[str] = []
    found = opened(authority(Presence(anne="monday"), {100: "signed"}, said))
    assert (found.header.statement, found.public_key, said) == ("signed", b"key", [])


def test_an_authority_that_fails_is_a_peers_fault():
    with pytest.raises(PeerError) as refused:
        opened(authority(Presence(anne="monday"), {100: None}, []))
    assert refused.value.message == "the key authority: RuntimeError"
    assert refused.value.remedy == "see its own log"


def test_an_authority_that_is_not_there_is_waited_for_and_told_once(monkeypatch):
    said: list[str] = []
    presence, waits = Presence(bob="monday"), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            presence.marks["anne"] = "monday"

    monkeypatch.setattr(remote_parties, "time", SimpleNamespace(monotonic=lambda: 0, sleep=sleep))
    assert opened(authority(presence, {100: "signed"}, said)).public_key == b"key"
    (told,) = said
    assert told.startswith("waiting: the key authority is not connected; see whether `fedllm auth")
    clock = SimpleNamespace(monotonic=iter(range(99)).__next__, sleep=lambda seconds: None)
    monkeypatch.setattr(remote_parties, "time", clock)
    with pytest.raises(PeerError, match="the key authority is not connected"):
        opened(authority(Presence(bob="monday"), {}, said, timeout_s=5.0))
