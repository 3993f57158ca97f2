"""The round that a site is in, as its own people see it."""

from __future__ import annotations

import json

import pytest

from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site.under_way import UnderWay

TEXTS = ("members", "plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")
STATEMENT = RoundStatement(
    run="run-1", round=3, attempt=4, rounds=9, cohort=(), min_sites=2, **dict.fromkeys(TEXTS, "")
)


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def way(tmp_path, clock):
    return UnderWay(tmp_path / "under_way.json", lambda: clock[0])


def shown(tmp_path):
    return json.loads((tmp_path / "under_way.json").read_text())


def test_a_round_is_shown_from_its_order_to_its_sum(way, tmp_path):
    assert not way.busy
    way.begin("signed", STATEMENT, "ward")
    assert way.busy
    found = shown(tmp_path)
    assert (found["run"], found["name"], found["round"], found["rounds"]) == ("run-1", "ward", 3, 9)
    assert (found["purpose"], found["phase"], "until" in found) == ("training", "computing", False)
    way.answered(60.0)
    assert way.busy
    assert shown(tmp_path)["phase"] == "waiting"
    assert shown(tmp_path)["until"] > found["since"]
    way.end("another")
    assert way.busy
    way.end("signed")
    assert not way.busy
    assert not (tmp_path / "under_way.json").exists()


def test_nobody_is_waited_for_longer_than_the_round_may_take(way, clock):
    way.begin("signed", STATEMENT, "ward")
    clock[0] = 1e9
    assert way.busy
    way.answered(60.0)
    clock[0] += 59.0
    assert way.busy
    clock[0] += 2.0
    assert not way.busy


def test_without_an_own_mask_nothing_more_is_asked(way, tmp_path):
    way.begin("signed", STATEMENT, "ward")
    way.answered(0.0)
    assert not way.busy
    assert not (tmp_path / "under_way.json").exists()


def test_what_a_killed_process_left_is_forgotten(tmp_path, clock):
    (tmp_path / "under_way.json").write_text("{}")
    UnderWay(tmp_path / "under_way.json", lambda: clock[0])
    assert not (tmp_path / "under_way.json").exists()


def test_a_disk_that_takes_nothing_changes_no_round(tmp_path, clock):
    (tmp_path / "file").write_text("")
    way = UnderWay(tmp_path / "file" / "under_way.json", lambda: clock[0])
    way.begin("signed", STATEMENT, "ward")
    assert way.busy
    way.end("signed")
    assert not way.busy
