"""What stands in a site's own log of rounds, to the letter."""

from __future__ import annotations

import json
from math import inf, nan

import pytest

from fedllm.errors import RefusedError, StorageError
from fedllm.federation.protocol.messages import Join, Joined, JoinedHeader, JoinHeader
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site import telling
from fedllm.federation.site.activity import Activity
from fedllm.federation.site.data import Datasets
from fedllm.federation.site.journal import Journal
from fedllm.federation.site.telling import SiteTelling
from fedllm.mechanisms import LocalStatistics

TEXTS = ("members", "plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")
STATEMENT = RoundStatement(
    run="run-1", round=4, attempt=7, rounds=9, cohort=(), min_sites=2, **dict.fromkeys(TEXTS, "")
)
JOIN = Join(JoinHeader(run="run-1", round=1, config="", labels=(), model="", adapter_length=1))
JOINED = Joined(JoinedHeader(site="anne"))
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5)


@pytest.fixture
def told(tmp_path):
    """A telling with its journal's lines, and the lines of its log."""
    said: list[str] = []
    path = tmp_path / "rounds.jsonl"
    made = SiteTelling(path, Journal(said.append), lambda asked: None)
    return made, said, lambda: [json.loads(line) for line in path.read_text().splitlines()]


def test_a_round_is_written_down_with_its_figures(told):
    made, said, lines = told
    made.trained(STATEMENT, LocalStatistics(1.5, 8, 2, QUANTILES), 3.0, 0.25)
    assert lines() == [
        {
            "run": "run-1",
            "round": 4,
            "attempt": 7,
            "seconds": {"train": 3.0, "encrypt": 0.25},
            "loss": 1.5,
            "records_seen": 8,
            "empty_batches": 2,
            "norm_quantiles": list(QUANTILES),
        }
    ]
    assert said == []


@pytest.mark.parametrize("loss", [nan, inf])
def test_what_went_wrong_in_a_round_stands_beside_its_figures(told, loss):
    made, _, lines = told
    broken = LocalStatistics(loss, 8, 0, QUANTILES, {"IndexError": 2}, "the loss is no number")
    made.trained(STATEMENT, broken, 3.0, 0.25)
    (line,) = lines()
    assert line["loss"] is None
    assert line["broken_units"] == {"IndexError": 2}
    assert line["problem"] == "the loss is no number"


def test_records_that_are_left_out_are_told_once_for_each_data_set(told):
    made, said, lines = told
    some = Datasets(None, None, "2 rows left out:\nrow 1\nrow 2")
    made.left_out("run-1", Datasets(None, None))
    for _ in range(2):
        made.left_out("run-1", some)
    made.left_out("run-2", Datasets(None, None, some.left_out))
    assert lines() == [{"run": run, "left_out": some.left_out} for run in ("run-1", "run-2")]
    assert said == [
        f"WARNING: run {run}: 2 rows left out (the site's log of rounds has the details)"
        for run in ("run-1", "run-2")
    ]


def inner():
    raise ValueError("Mrs Example")


def outer():
    inner()


def outermost():
    outer()


def test_of_an_error_that_nobody_foresaw_its_last_three_places_are_written_down(told):
    made, _, lines = told
    with pytest.raises(ValueError, match="Example") as caught:
        outermost()
    made.details(caught.value)
    made.details(RefusedError("no", "ask"))
    first, second = lines()
    place = [f"test_telling.py:{f.__code__.co_firstlineno + 1}" for f in (outermost, outer, inner)]
    assert first == {"error": "ValueError", "text": " > ".join(place)}
    assert second == {"error": "RefusedError", "text": str(RefusedError("no", "ask"))}


def test_neither_journal_nor_log_stops_anything(told, monkeypatch, tmp_path):
    made, said, lines = told

    def fails(*_):
        raise ValueError("Mrs Example")

    monkeypatch.setattr(made, "_spent", fails)
    made.done(JOIN, 1.0, JOINED)
    made.refused(JOIN, RefusedError("no"), 1.0)
    assert lines() == [{"journal": "ValueError"}] * 2
    assert said == []
    silent = SiteTelling(tmp_path / "other", None, fails)
    silent.done(JOIN, 1.0, JOINED)
    silent.refused(JOIN, RefusedError("no"), 1.0)
    assert not (tmp_path / "other").exists()

    listing = SiteTelling(tmp_path / "log", None, fails, activity=Activity(tmp_path / "log" / "no"))
    monkeypatch.setattr(listing, "_append", lambda line: said.append(str(line)))
    (tmp_path / "log").write_text("")
    listing.done(JOIN, 1.0, JOINED)
    listing.refused(JOIN, RefusedError("no"), 1.0)
    assert said == ["{'journal': 'NotADirectoryError'}"] * 2
    said.clear()

    def full(path, line, durable):
        raise StorageError("the disk is full")

    monkeypatch.setattr(telling, "append_line", full)
    made.details(RefusedError("no"))
    silent.details(RefusedError("no"))
    assert said == ["WARNING: the disk is full"]
