"""The coordinator's journal: who came, who was lost, which round failed, by the sites' names."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import pytest
from support.federation import build, records, small_config

from fedllm.errors import PeerError
from fedllm.federation.protocol.messages import RoundOpened, RoundOpenedHeader
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.transport.superlink import NodeState
from fedllm.identity.roster import Roster
from fedllm.runs import names
from fedllm.runs.metrics import RoundReport, append_report, read_reports
from fedllm.runs.observer import Observer, Observers, Start
from fedllm.runs.progress import ProgressFile
from fedllm_server import jobs
from fedllm_server.journal import Comings, JournalObserver
from fedllm_server.loop import RoundLoop, Workplace
from fedllm_server.starting import starting_state

ROSTER = Roster(b"", {"anne": b""}, titles={"anne": "Sankt Änne"})


def node(name: str, since: str | None, online: bool = True) -> NodeState:
    return NodeState(name, 7, online, since)


def test_who_comes_and_who_is_lost_is_told_once():
    said: list[str] = []
    comings = Comings(said.append)
    comings.look([node("anne", "9:00"), node("authority", None, online=False)], ROSTER)
    comings.look([node("anne", "9:00"), node("authority", "9:05")], ROSTER)
    comings.look([node("anne", "9:00"), node("authority", "9:05")], ROSTER)
    comings.look([node("anne", "9:10"), node("authority", "9:06", online=False)], ROSTER)
    comings.look([node("authority", "9:06", online=False)], ROSTER)
    assert said == [
        "site Sankt Änne (anne) is connected",
        "the key authority is connected",
        "the key authority is not connected any more",
        "site Sankt Änne (anne) has connected anew",
        "site Sankt Änne (anne) is not connected any more",
    ]


def test_parties_that_are_lost_at_once_are_told_in_the_order_of_their_names():
    said: list[str] = []
    comings, names = Comings(said.append), [f"site-{number}" for number in range(8)]
    roster = Roster(b"", dict.fromkeys(names, b""))
    comings.look([node(name, "9:00") for name in reversed(names)], roster)
    comings.look([], roster)
    what = ("is connected", "is not connected any more")
    assert said == [f"site {name} {words}" for words in what for name in names]


def test_a_run_that_begins_or_goes_on_is_told_with_its_size(tiny_checkpoint):
    said: list[str] = []
    observer = JournalObserver("bank", said.append)
    config = small_config(tiny_checkpoint("bert"), name="bank")
    observer.started(Start("run-1", config, "rounds", 30, sites=9))
    observer.started(Start("run-1", config, "rounds", 30, done=12, sites=8))
    assert said == [
        "run 'bank': 9 sites, 30 rounds",
        "run 'bank': 8 sites, 30 rounds, going on after round 12",
    ]


def test_a_round_that_takes_long_is_told_every_minute():
    said: list[str] = []
    seconds = iter(range(0, 1000, 30))
    observer = JournalObserver("bank", said.append, lambda: next(seconds))
    for done in range(4):
        observer.answering(7, "train", done, 9)
    assert said == [
        f"run 'bank': round 7, training: {done} of 9 sites have answered" for done in (1, 3)
    ]


@pytest.fixture
def loop_of(tiny_checkpoint, tmp_path):
    """A run, of three sites unless told, whose coordinator keeps a journal."""

    def make(sites=3, **sections):
        config = small_config(tiny_checkpoint("bert"), name="bank", **sections)
        data = {f"site-{number}": records(40, seed=number) for number in range(sites)}
        federation = build(tmp_path / "sites", config, data)
        said: list[str] = []
        out = tmp_path / "run"
        out.mkdir()
        observer = Observers.of([ProgressFile(out), JournalObserver(config.name, said.append)])
        model = federation.model()
        place = Workplace(
            out, model, None, federation.roster, observer, lambda run, number: ({}, {})
        )
        loop = RoundLoop(config, place, federation.terms, federation, federation.authority)
        state = dataclasses.replace(starting_state(config, model, None), run="run-1")
        return SimpleNamespace(
            carry=lambda: loop.run(state), federation=federation, said=said, out=out
        )

    (tmp_path / "sites").mkdir()
    return make


def test_a_lost_site_is_told_with_its_name_and_the_reason(loop_of):
    made = loop_of(rounds={"count": 1})
    made.federation.tamper = lambda kind, name, m: (
        None if (kind, name) == ("train", "site-1") else m
    )
    made.carry()
    assert made.said[0] == "run 'bank': 3 sites, 1 rounds"
    assert "run 'bank': round 1 goes on without site site-1: no answer" in made.said
    assert made.said[-1].startswith("run 'bank': round 1/1 2 sites 1 dropped")
    notes = [json.loads(line) for line in (made.out / "progress.jsonl").open()]
    assert [n["text"] for n in notes if n["kind"] == "note"] == [
        "round 1 goes on without site site-1: no answer"
    ]


def test_a_failed_round_and_its_retry_are_told(loop_of):
    made = loop_of(rounds={"count": 1, "min_sites": 3})
    lost = iter(["site-2", None])
    current = {}

    def lose(kind, name, message):
        if kind == "train request" and name == "site-0":
            current["lost"] = next(lost)
        return None if kind == "train" and name == current["lost"] else message

    made.federation.tamper = lose
    made.carry()
    assert made.said[1:-1] == [
        "run 'bank': round 0/1",
        "run 'bank': round 1 failed and is tried again: 2 sites can go on, 3 are needed. "
        "site-2: no answer",
    ]


class Silent:
    """A key authority that is not there."""

    def __init__(self) -> None:
        self.asked = 0

    def open_round(self, request):
        self.asked += 1
        raise PeerError("the key authority: it is not connected any more")


def test_a_peer_is_forgiven_twice_and_a_lost_authority_is_told(loop_of):
    made = loop_of()
    silent = Silent()
    made.federation.authority.open_round = silent.open_round
    with pytest.raises(PeerError, match="not connected any more"):
        made.carry()
    assert silent.asked == 3
    assert made.said[-3:] == [
        "run 'bank': round 1 failed and is tried again: the key authority: it is not connected "
        "any more",
        "run 'bank': round 1 failed and is tried again: the key authority: it is not connected "
        "any more",
        "run 'bank': round 1 failed 3 times, the last time: the key authority: it is not "
        "connected any more",
    ]


def test_forgiveness_begins_anew_with_each_round(loop_of):
    made = loop_of(rounds={"count": 2})
    original, asked = made.federation.authority.open_round, []

    def sometimes(request):
        asked.append(json.loads(request.header.statement)["round"])
        if len(asked) % 3:
            raise PeerError("the key authority: no answer")
        return original(request)

    made.federation.authority.open_round = sometimes
    assert made.carry().round == 2
    assert asked == [1, 1, 1, 2, 2, 2]


def test_a_refusal_that_is_no_peers_fault_is_not_repeated(loop_of):
    """In the words of a deployed authority, which tells the kind of most errors alone."""
    made = loop_of()
    asked = []
    refusal = Refusal(
        kind="StorageError", message="StorageError", remedy="the site's own log has the details"
    )

    def refuse(request):
        asked.append(request)
        return RoundOpened(RoundOpenedHeader(refusal=refusal), b"")

    made.federation.authority.open_round = refuse
    with pytest.raises(Exception, match=r"^the key authority: StorageError"):
        made.carry()
    assert len(asked) == 1


def test_a_refusal_in_a_simulation_names_the_site(tiny_checkpoint, tmp_path):
    """Sites are nodes there, whose numbers say nothing to anybody."""
    from support.federation import records, write_jsonl

    from fedllm.config import SitePolicy
    from fedllm.errors import RefusedError
    from fedllm_server.simulation import simulate

    rows = records(30)
    config = small_config(
        tiny_checkpoint("bert"), data={"train": str(write_jsonl(tmp_path / "t.jsonl", rows))}
    )
    said: list[str] = []

    class Listener(Observer):
        def note(self, text: str) -> None:
            said.append(text)

    policy = SitePolicy.model_validate({"allow": {"min_cohort": 2}})
    with pytest.raises(RefusedError, match="site-00: "):
        simulate(config, tmp_path / "run", policy=policy, observers=[Listener()])
    # Said once, for all that give the same reason.
    (refusal,) = [text for text in said if text.startswith("not taking part")]
    assert refusal.startswith("not taking part: 3 sites (site-00, site-01, site-02): ")
    assert refusal.count("site-00") == 1
    assert "node 1" not in " ".join(said)


def test_a_run_that_failed_is_told_with_its_reason(tmp_path):
    from fedllm_server.service import Service, _Work

    said: list[str] = []
    service = object.__new__(Service)
    service._say, service._idle_starts = said.append, {}
    folder = tmp_path / "bank"
    folder.mkdir()
    jobs.write_job(folder, jobs.Job("bank", "running", "2026-01-01"))
    error = {"kind": "PeerError", "message": "the key authority is not connected", "remedy": "go"}
    (folder / "outcome.json").write_text(json.dumps({"error": error}))
    link = SimpleNamespace(close_runs=lambda: None)
    service._watch(link, _Work(folder, SimpleNamespace(poll=lambda: 4, returncode=4), 0))
    assert said == [
        "run 'bank': failed: the key authority is not connected -> go",
    ]


def test_sites_in_one_process_never_change():
    from fedllm_server.app import GridSites

    assert GridSites(None, {}, 1.0).changed() is False


def test_a_model_is_measured_every_few_rounds_and_after_the_last(tmp_path):
    config = small_config(tmp_path, rounds={"count": 5, "evaluate_every": 2})
    loop = SimpleNamespace(_config=config)
    assert [number for number in range(1, 6) if RoundLoop._due(loop, number)] == [2, 4, 5]


def test_a_new_run_has_a_name_of_its_own_and_an_old_one_keeps_it(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"))
    model = build(tmp_path, config).model()
    one, other = (starting_state(config, model, None, "digest") for _ in range(2))
    assert len(one.run) == 16
    assert int(one.run, 16) != int(other.run, 16)
    assert (one.round, one.noise, one.test) == (0, (), "digest")
    assert (one.model, one.labels) == (model.fingerprint, model.labels)
    again = starting_state(config, model, dataclasses.replace(one, round=1, labels=()), "new")
    assert (again.run, again.round, again.labels, again.test) == (one.run, 1, one.labels, "new")


def test_figures_that_a_start_without_a_checkpoint_left_are_another_runs(loop_of):
    """A crash before the first checkpoint: what begins then is a new run, with a new model."""
    made = loop_of(rounds={"count": 1})
    append_report(made.out / names.METRICS, RoundReport(round=0, metrics={"loss": 99.0}))
    made.carry()
    left = read_reports(made.out / names.METRICS)
    assert [(report.round, report.metrics) for report in left] == [(0, None), (1, None)]


def test_lost_sites_are_told_in_their_order_and_not_in_that_of_their_loss(loop_of):
    made = loop_of(sites=5, rounds={"count": 1}, encryption={"masks": True})
    lost = {("train", "site-4"), ("ready", "site-1")}
    made.federation.tamper = lambda kind, name, m: None if (kind, name) in lost else m
    made.carry()
    told = [words for words in made.said if "goes on without" in words]
    assert told == ["run 'bank': round 1 goes on without 2 sites (site-1, site-4): no answer"]
