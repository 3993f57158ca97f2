"""What is written for watchers is told to them again, and damage is named."""

from __future__ import annotations

import json

import pytest
from support.run_folder import run_config

from fedllm.errors import FedllmError
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Observer, Observers, Start, StepReport
from fedllm.runs.progress import ProgressFile, replay


class Heard(Observer):
    def __init__(self):
        self.heard = []

    def started(self, start):
        self.heard.append(start)

    def note(self, text):
        self.heard.append(text)

    def site_answered(self, round, site, answered, sites):
        self.heard.append((round, site, answered, sites))

    def answering(self, round, phase, answered, asked):
        self.heard.append((round, phase, answered, asked))

    def finished_round(self, report):
        self.heard.append(report)

    def advanced(self, report):
        self.heard.append(report)


def tell(observer, config):
    observer.started(Start("0123", config, "rounds", 3, 1, 2, {"site-00": "北京医院"}))
    observer.note("a word\nand another")
    observer.site_answered(2, "site-00", 1, 2)
    observer.finished_round(RoundReport(round=2, sites=2, metrics={"loss": float("nan")}))
    observer.advanced(StepReport(1, 9, 64, 3.5, 100.0, 8.0, {"bits_per_byte": 1.5}))


def test_who_watches_from_elsewhere_hears_the_same(tmp_path):
    config, here, there = run_config(), Heard(), Heard()
    tell(Observers([here, ProgressFile(tmp_path)]), config)
    lines = (tmp_path / "progress.jsonl").read_bytes().splitlines()
    assert b"NaN" not in b"".join(lines)
    for line in lines:
        replay(line, "here", config, there)
    assert there.heard == here.heard
    assert len(there.heard) == 5


def test_the_configuration_with_its_passwords_is_not_written(tmp_path):
    config = run_config(data={"train": "postgresql://me:secret@host/db", "query": "SELECT 1"})
    ProgressFile(tmp_path).started(Start("0123", config, "rounds", 3))
    assert "secret" not in (tmp_path / "progress.jsonl").read_text()


def test_lines_of_an_earlier_version_are_read():
    heard = Heard()
    report = '{"round": 1, "sites": 2, "metrics": {"loss": NaN}, "update_norm": Infinity}'
    for line in (
        '{"kind": "started", "rounds": 3, "sites": 2, "done": 0}',
        f'{{"kind": "finished_round", "report": {report}}}',
        '{"kind": "of a later version", "x": 1}',
    ):
        replay(line.encode(), "here", run_config(), heard)
    start, first = heard.heard
    assert (start.total, start.sites, start.done) == (3, 2, 0)
    assert first == RoundReport(round=1, sites=2, metrics={"loss": None}, update_norm=None)


def test_how_many_have_answered_is_written_every_five_seconds_at_most(tmp_path):
    seconds = iter([0, 4, 5, 5, 9, 10, 10])
    progress, heard = ProgressFile(tmp_path, lambda: next(seconds)), Heard()
    for told in (
        (1, "join", 1, None),
        (1, "join", 2, None),
        (1, "train", 0, 2),
        (1, "train", 1, 2),
    ):
        progress.answering(*told)
    for line in (tmp_path / "progress.jsonl").read_bytes().splitlines():
        replay(line, "here", run_config(), heard)
    assert heard.heard == [(1, "join", 2, None), (1, "train", 1, 2)]


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b'{"kind": "no',
        b"[" * 100_000,
        b"[]",
        b"{}",
        b'{"kind": "close"}x',
        b'{"kind": 3}',
        b'{"kind": "started", "total": 1e999, "done": 0, "sites": 1}',
        b'{"kind": "note", "text": "\\ud800"}',
        b'{"kind": "started"}',
        b'{"kind": "site_answered", "round": "x", "site": "a", "answered": 1, "sites": 2}',
        b'{"kind": "answering", "round": 1, "phase": "join", "answered": 1}',
        b'{"kind": "answering", "round": 1, "phase": "join", "answered": 1, "asked": "x"}',
        b'{"kind": "finished_round", "report": 3}',
        b'{"kind": "finished_round", "report": {"round": -1}}',
        b'{"kind": "advanced", "report": {"step": 1}}',
    ],
)
def test_a_damaged_line_is_named_and_calls_nothing(line):
    heard = Heard()
    with pytest.raises(FedllmError, match="progress, line 7"):
        replay(line, "progress, line 7", run_config(), heard)
    assert heard.heard == []


def test_an_observer_that_fails_hears_no_more_and_the_others_do():
    class Fails(Observer):
        def finished_round(self, report):
            raise OSError("disk full")

    heard = Heard()
    observers = Observers([Fails(), heard])
    tell(observers, run_config())
    assert observers.listening == [heard]
    assert "Fails hears no more of this run: disk full" in heard.heard
    assert len(heard.heard) == 6


def test_observers_that_fail_one_after_the_other_end_no_run():
    class Fails(Observer):
        def note(self, text):
            raise OSError("broken pipe")

        def finished_round(self, report):
            raise OSError("disk full")

    # Dataclasses may be equal and still two.
    heard = Heard()
    observers = Observers([Fails(), Fails(), heard, Fails()])
    tell(observers, run_config())
    assert observers.listening == [heard]
    assert RoundReport(round=2, sites=2, metrics={"loss": None}) in heard.heard
    assert sum("hears no more" in str(one) for one in heard.heard) == 3


def test_a_line_that_a_crash_cut_off_spoils_no_later_one(tmp_path):
    path = tmp_path / "progress.jsonl"
    path.write_bytes(b'{"kind": "note", "te')
    ProgressFile(tmp_path).note("resumed")
    ProgressFile(tmp_path).note("again")
    half, *whole = path.read_bytes().splitlines()
    heard = Heard()
    for line in whole:
        replay(line, "here", run_config(), heard)
    assert (half, heard.heard) == (b'{"kind": "note", "te', ["resumed", "again"])


def test_an_interrupt_is_no_failure_of_an_observer():
    class Stops(Observer):
        def note(self, text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Observers([Stops()]).note("x")


def test_a_start_says_which_run_and_what_was_asked():
    start = Start("0123", run_config(), "rounds", 3)
    assert start.private
    assert not Start("0123", run_config(privacy={"epsilon": None}), "rounds", 3).private
    json.dumps(start.config.model_dump(mode="json"))
