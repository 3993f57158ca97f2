"""Every exchange of a round is counted for whoever watches, from its start to its last answer."""

from __future__ import annotations

import dataclasses

from support.federation import build, small_config

from fedllm.runs.observer import Observer
from fedllm_server.loop import RoundLoop, Workplace
from fedllm_server.starting import starting_state
from fedllm_server.watched import WatchedSites

Told = list[tuple[int, str, int, int | None]]


class Counts(Observer):
    def __init__(self) -> None:
        self.told: Told = []

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        self.told.append((round, phase, answered, asked))


def counted(tiny_checkpoint, folder, **sections) -> Told:
    """What is told of a run of three sites."""
    config = small_config(tiny_checkpoint("bert"), **sections)
    (folder / "sites").mkdir()
    (folder / "run").mkdir()
    federation, observer = build(folder / "sites", config), Counts()
    place = Workplace(
        folder / "run",
        federation.model(),
        None,
        federation.roster,
        observer,
        lambda run, number: ({}, {}),
    )
    loop = RoundLoop(config, place, federation.terms, federation, federation.authority)
    loop.run(dataclasses.replace(starting_state(config, place.model, None), run="run-1"))
    return observer.told


def every(round: int, phase: str, asked: int | None = 3) -> Told:
    return [(round, phase, answered, asked) for answered in range(4)]


def test_each_exchange_of_each_round_is_counted(tiny_checkpoint, tmp_path):
    found = counted(
        tiny_checkpoint,
        tmp_path,
        rounds={"count": 1},
        encryption={"masks": True},
        evaluation={"every": 1, "holdout": 0.3},
    )
    round_of = ("ready", "settle", "unmask")
    expected = [*every(1, "join", None), *every(1, "train")]
    for phase in round_of:
        expected += every(1, phase)
    expected += every(1, "evaluate")
    for phase in round_of:
        expected += every(1, phase)
    assert found == expected


class Party:
    """Sites of which two answer whatever they are asked; remembers what that was."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def __getattr__(self, name: str):
        def ask(*about: object) -> object:
            self.asked.append((name, *about))
            return {"changed": True}.get(name, iter([("anne", name), ("bob", name)]))

        return ask


def test_every_question_and_every_answer_is_passed_on():
    party, observer = Party(), Counts()
    watched = WatchedSites(party, observer, 7)
    phases = ("draw", "train", "ready", "settle", "unmask", "recover")
    for phase in phases:
        answers = getattr(watched, phase)("question", ("anne", "bob", "carl"))
        assert list(answers) == [("anne", phase), ("bob", phase)]
    assert list(watched.join("question")) == [("anne", "join"), ("bob", "join")]
    watched.admit("node 1", "anne")
    assert watched.changed() is True
    asked = [(phase, "question", ("anne", "bob", "carl")) for phase in phases]
    assert party.asked == [*asked, ("join", "question"), ("admit", "node 1", "anne"), ("changed",)]
    told = [count for phase in phases for count in every(7, phase)[:3]]
    assert observer.told == [*told, *every(7, "join", None)[:3]]
