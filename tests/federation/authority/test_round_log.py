"""The key authority's log: no round twice, whatever happens to process and file."""

from __future__ import annotations

import json

import pytest

from fedllm.errors import PeerError, RepeatError
from fedllm.federation.authority.round_log import RoundLog, read_log
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.identity.keys import Identity


def statement(round: int, attempt: int = 1, run: str = "ab") -> RoundStatement:
    return RoundStatement(
        run=run,
        round=round,
        attempt=attempt,
        rounds=9,
        cohort=("anne", "bob"),
        members="",
        min_sites=2,
        plan="",
        key="",
        reveal_key="",
        config="",
        labels="",
        bounds="",
        model="",
        adapter="",
    )


@pytest.fixture
def identity() -> Identity:
    return Identity.generate("authority")


def test_a_round_is_opened_once_even_after_a_restart(tmp_path, identity):
    path = tmp_path / "state" / "rounds.jsonl"
    log = RoundLog(path, identity)
    log.add(statement(1))
    log.summed(statement(1), ("anne",))
    assert len(path.read_text().splitlines()) == 2, "on disk at once"
    for again in (log, RoundLog(path, identity)):
        with pytest.raises(RepeatError, match="opened before"):
            again.add(statement(1))
    later = RoundLog(path, identity)
    later.add(statement(1, attempt=2))
    later.add(statement(1, run="cd"))
    entries = read_log(path, identity.public_bytes())
    assert [(e.event, e.run, e.attempt, e.sites) for e in entries] == [
        ("opened", "ab", 1, ("anne", "bob")),
        ("summed", "ab", 1, ("anne",)),
        ("opened", "ab", 2, ("anne", "bob")),
        ("opened", "cd", 1, ("anne", "bob")),
    ]


def test_training_and_evaluation_of_a_round_are_kept_apart(tmp_path, identity):
    path = tmp_path / "rounds.jsonl"
    training = statement(1)
    evaluation = training.model_copy(update={"purpose": "evaluation"})
    RoundLog(path, identity).add(evaluation)
    log = RoundLog(path, identity)
    log.add(training)
    for opened in (training, evaluation):
        with pytest.raises(RepeatError):
            RoundLog(path, identity).add(opened)


def test_a_line_that_a_crash_cut_off_was_never_acted_on(tmp_path, identity):
    path = tmp_path / "rounds.jsonl"
    RoundLog(path, identity).add(statement(1))
    path.write_bytes(path.read_bytes() + b'{"number": 2, "ti')
    log = RoundLog(path, identity)
    log.add(statement(2))
    assert len(read_log(path, identity.public_bytes())) == 2


def edit(line: str, **changes) -> str:
    return json.dumps({**json.loads(line), **changes})


@pytest.mark.parametrize(
    ("tamper", "line"),
    [
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[1], lines[0], lines[2]], 1),
        (lambda lines: [edit(lines[0], round=7), *lines[1:]], 1),
        (lambda lines: [lines[0], edit(lines[1], sites=["anne"]), lines[2]], 2),
        (lambda lines: [*lines[:2], edit(lines[2], signature="00" * 64)], 3),
        (lambda lines: [*lines[:2], "nonsense"], 3),
        (lambda lines: [*lines[:2], edit(lines[2], more=1)], 3),
    ],
)
def test_an_altered_log_is_noticed_and_named(tmp_path, identity, tamper, line):
    path = tmp_path / "rounds.jsonl"
    log = RoundLog(path, identity)
    for number in (1, 2, 3):
        log.add(statement(number))
    lines = tamper(path.read_text().splitlines())
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(PeerError, match=f"line {line}:"):
        RoundLog(path, identity)


def test_a_log_of_another_authority_is_not_taken(tmp_path, identity):
    path = tmp_path / "rounds.jsonl"
    RoundLog(path, identity).add(statement(1))
    with pytest.raises(PeerError, match="line 1: its signature"):
        RoundLog(path, Identity.generate("authority"))
