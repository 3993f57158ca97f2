"""A site whose people hold it: what it refuses, when, and what it writes down of a round."""

from __future__ import annotations

import json

import pytest
from support.federation import build, records, small_config

from fedllm.errors import PausedError
from fedllm.federation.site.activity import Activity
from fedllm.federation.site.brake import Brake
from fedllm.federation.site.under_way import UnderWay

SECRET = "Mrs Example has a rare disease"


@pytest.fixture
def made(tiny_checkpoint, tmp_path):
    def make(**sections):
        config = small_config(tiny_checkpoint("bert"), name="bank", **sections)
        return build(tmp_path, config, states=True, full_errors=False)

    return make


def brake(federation, name="site-0"):
    return Brake(federation.folder / f"{name}-state")


def lines(federation, name="site-0"):
    path = federation.folder / f"{name}-state" / "activity.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def ledger(federation, name="site-0"):
    return (federation.folder / f"{name}.sqlite").read_bytes()


def test_a_paused_site_touches_no_record_and_no_ledger(made, monkeypatch):
    federation = made(privacy={"epsilon": 2.0})
    cohort_of_all = federation.round()
    assert len(cohort_of_all.survivors) == 3
    before = ledger(federation)
    brake(federation).pause("a test")

    def touched(*_):
        pytest.fail("a record was touched")

    for name in ("require_unit", "units", "datasets"):
        monkeypatch.setattr(federation.sites["site-0"]._data, name, touched)
    answers = {}
    federation.tamper = lambda kind, name, message: answers.setdefault((kind, name), message)
    outcome = federation.round(2, 2)
    # It did not join, and the others went on.
    assert outcome.survivors == ("site-1", "site-2")
    refusal = answers["join", "site-0"].header.refusal
    assert refusal.kind == "PausedError"
    assert refusal.message == "the site has paused: it begins no round until its people say so"
    assert ledger(federation) == before
    assert [one["what"] for one in lines(federation)][-1] == "refused"
    assert lines(federation)[-1]["reason"].startswith("PausedError: this site is paused since ")


def paused_within(federation, kind, name="site-0"):
    """Pause a site when the coordinator is about to send it a message of some kind."""
    answers = {}

    def tamper(what, whom, message):
        if (what, whom) == (f"{kind} request", name):
            brake(federation).pause("a test")
        return answers.setdefault((what, whom), message)

    federation.tamper = tamper
    return answers


def test_a_site_that_joined_and_paused_since_is_left_out_without_a_charge(made):
    federation = made(privacy={"epsilon": 2.0})
    answers = paused_within(federation, "train")
    outcome = federation.round()
    assert outcome.survivors == ("site-1", "site-2")
    assert outcome.dropped == {
        "site-0": "site-0: the site has paused: it begins no round until its people say so"
    }
    assert answers["train", "site-0"].update == b""
    assert federation.sites["site-0"]._account().head().sequence == 1, "it was charged"
    assert not [one for one in lines(federation) if one["what"] == "sent"]


@pytest.mark.parametrize("purpose", ["update", "evaluation"])
def test_a_pause_between_the_checks_and_the_charge_still_holds(made, monkeypatch, purpose):
    federation = made(
        privacy={"epsilon": 2.0}, evaluation={"every": 1, "epsilon": 0.5, "holdout": 0.3}
    )
    site = federation.sites["site-0"]
    check = site._work.require_trainable

    def then_paused(*arguments):
        check(*arguments)
        if federation.heard[-1][0] == "train":
            brake(federation).pause("a test")

    monkeypatch.setattr(site._work, "require_trainable", then_paused)
    outcome = federation.round(purpose=purpose)
    assert outcome.survivors == ("site-1", "site-2")
    assert site._account().head().sequence == 1, "it was charged"
    assert not site.busy


def test_a_round_that_has_begun_is_finished(made):
    federation = made(privacy={"epsilon": 2.0})
    paused_within(federation, "settle")
    assert federation.round().survivors == ("site-0", "site-1", "site-2")


def test_too_few_sites_that_are_not_paused_end_the_round_in_words_on_the_pause(made):
    federation = made(rounds={"min_sites": 3})
    brake(federation).pause("a test")
    with pytest.raises(PausedError, match="site-0: the site has paused"):
        federation.round()


def test_a_site_goes_on_when_it_is_released(made):
    federation = made()
    brake(federation).pause("a test")
    assert len(federation.round().survivors) == 2
    brake(federation).release()
    assert len(federation.round(2, 2).survivors) == 3


def test_what_is_written_down_of_a_round_is_public(made):
    federation = made(privacy={"epsilon": 2.0})
    sent = {}
    federation.tamper = lambda kind, name, message: sent.setdefault((kind, name), message)
    federation.round()
    found = lines(federation)
    (update,) = [one for one in found if one["what"] == "sent"]
    plan = sent["train request", "site-0"].plan
    assert update["size_bytes"] == len(sent["train", "site-0"].update)
    assert update["values"] == json.loads(plan)["length"]
    assert (update["scheme"], update["masked"], update["noise"]) == ("bfv", True, "local")
    assert (update["name"], update["round"], update["rounds"]) == ("bank", 1, 2)
    assert update["purpose"] == "training"
    assert [one["message"] for one in found if one["what"] == "answered"] == [
        *("join", "ready", "settle", "unmask")
    ]
    for one in found:
        if one["what"] == "answered":
            header, blobs = sent[one["message"], "site-0"].to_wire()
            assert one["size_bytes"] == len(header) + sum(map(len, blobs.values()))


def test_no_record_enters_what_is_written_down(tiny_checkpoint, tmp_path):
    rows = records(20)
    config = small_config(tiny_checkpoint("bert"), name="bank")
    federation = build(tmp_path, config, full_errors=False, states=True)
    site = federation.sites["site-0"]

    def fails(*_):
        raise ValueError(SECRET)

    site._work.train = fails
    federation.round()
    text = (tmp_path / "site-0-state" / "activity.jsonl").read_text()
    assert "ValueError (the site's log of rounds has the details)" in text
    assert SECRET not in text
    assert not any(row.values["text"] in text for row in rows)


def test_a_site_is_busy_from_its_order_until_its_masks_are_off(made):
    federation = made()
    site, seen = federation.sites["site-0"], []

    def look(kind, name, message):
        if name == "site-0":
            seen.append((kind, site.busy))
        return message

    federation.tamper = look
    federation.round()
    assert [kind for kind, busy in seen if busy] == [
        *("train", "ready request", "ready", "settle request", "settle", "unmask request")
    ]
    assert not site.busy


def test_a_round_without_own_masks_ends_with_its_answer(made):
    federation = made(encryption={"recover_dropouts": False})
    federation.round()
    assert not federation.sites["site-0"].busy


def test_a_disk_that_takes_no_line_loses_no_round(made, monkeypatch):
    federation = made()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Activity, "_append", full)
    monkeypatch.setattr(UnderWay, "_show", lambda *_: None)
    assert len(federation.round().survivors) == 3
    brake(federation).pause("a test")
    assert len(federation.round(2, 2).survivors) == 2


def test_the_list_of_messages_stays_short(tmp_path, monkeypatch):
    monkeypatch.setattr("fedllm.federation.site.activity._MOST_BYTES", 4096)
    activity = Activity(tmp_path)
    for number in range(200):
        activity._append("answered", {"round": number})
    content = (tmp_path / "activity.jsonl").read_text()
    assert len(content) < 4096 + 200
    rounds = [json.loads(line)["round"] for line in content.splitlines()]
    assert rounds == list(range(rounds[0], 200))
