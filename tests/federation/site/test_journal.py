"""What a site's journal says, to the letter; and that none of it leaves, nor any record enters."""

from __future__ import annotations

import errno
import itertools
import json

import pytest
from support.federation import build, records, small_config

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.data.records import Record
from fedllm.errors import FedllmError, PeerError, StorageError
from fedllm.federation.protocol.messages import Draw, SignedRound
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.site import telling
from fedllm.federation.site.journal import Asked, Journal, Spent, asked_by
from fedllm.files import explained
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.ledger.ledger import Ledger

POLICY = SitePolicy(
    budget=BudgetSection(epsilon=8.0, delta=1e-5),
    allow=AllowSection(min_cohort=1, encryption="optional", non_private=True),
)


@pytest.fixture
def watched(tiny_checkpoint, tmp_path):
    """A federation whose first site keeps a journal, with a clock that moves 2 s each look."""

    def make(full_errors=False, data=None, **sections):
        config = small_config(tiny_checkpoint("bert"), name="bank", **sections)
        federation = build(tmp_path, config, data, POLICY, full_errors)
        said: list[str] = []
        site, ticks = federation.sites["site-0"], itertools.count(0.0, 2.0)
        site._telling._journal, site._clock = Journal(said.append), lambda: next(ticks)
        return federation, said

    return make


def test_a_round_is_told_with_its_cost_and_its_seconds(watched, tmp_path):
    federation, said = watched(privacy={"epsilon": 2.0})
    federation.round()
    events = Ledger.open(
        tmp_path / "site-0.sqlite", "site-0", federation.identities["site-0"]
    ).events_of_run("run-1")
    spent = epsilon(events, 1e-5).value
    joined, trained = said
    assert joined == (
        "run 'bank' (run-1), from round 1 of 2 on, joining: done in 2.0 s; the run has spent "
        "epsilon 0 at delta 1e-05, 8 of 8 at delta 1e-05 is left"
    )
    # The clock is looked at when the message came, before and after training, and twice after.
    assert trained == (
        "run 'bank' (run-1), round 1 of 2, attempt 1, training: done in 8.0 s; the run has spent "
        f"epsilon {spent:.4g} at delta 1e-05, {8.0 - spent:.4g} of 8 at delta 1e-05 is left"
    )
    line = json.loads((tmp_path / "site-0.log").read_text())
    assert line["seconds"] == {"train": 2.0, "encrypt": 2.0}


def test_a_run_without_privacy_is_infinite(watched):
    federation, said = watched()
    federation.round()
    assert said[-1].endswith(
        "the run has spent epsilon infinite at delta 1e-05, 0 of 8 at delta 1e-05 is left"
    )


def test_a_refusal_is_told_with_its_reason_and_costs_nothing(watched):
    federation, said = watched(privacy={"epsilon": 2.0})
    federation.round()
    federation.tamper = lambda kind, name, m: (
        type(m)(m.header, m.plan, m.public_key, b"") if kind == "train request" else m
    )
    ledger = (federation.folder / "site-0.sqlite").read_bytes()
    before = said[-1].split("the run has spent")[1]
    with pytest.raises(PeerError):
        federation.round(2, 2)
    assert said[-1] == (
        "run 'bank' (run-1), round 2 of 2, attempt 2, training: refused after 2.0 s: PeerError: "
        f"not what was signed for this round: the order's adapter; the run has spent{before}"
    )
    assert (federation.folder / "site-0.sqlite").read_bytes() == ledger


def with_another_model(kind, name, message):
    if kind != "join request" or name != "site-0":
        return message
    return type(message)(message.header.model_copy(update={"model": "0" * 64}))


def test_a_refusal_after_a_restart_says_what_is_spent_and_left(watched):
    federation, said = watched(privacy={"epsilon": 2.0})
    federation.round()
    before, ledger = said[-1].split("the run has spent")[1], federation.folder / "site-0.sqlite"
    content = ledger.read_bytes()
    # As a service that has just started.
    federation.sites["site-0"]._opened = None
    federation.tamper = with_another_model
    federation.round(2, 2)
    assert "joining: refused after 2.0 s: RefusedError" in said[-1]
    assert said[-1].endswith(f"the run has spent{before}")
    assert ledger.read_bytes() == content


def test_a_refusal_before_the_first_charge_makes_no_ledger(watched):
    federation, said = watched(privacy={"epsilon": 2.0})
    federation.tamper = with_another_model
    federation.round()
    assert "is left" not in said[-1]
    assert not (federation.folder / "site-0.sqlite").exists()


def test_an_evaluation_is_told_as_one(watched):
    federation, said = watched(
        privacy={"epsilon": 2.0}, evaluation={"every": 1, "epsilon": 0.5, "holdout": 0.3}
    )
    federation.round(purpose="evaluation")
    assert said[-1].startswith("run 'bank' (run-1), round 1 of 2, attempt 1, evaluation: done in ")


def test_a_later_exchange_that_is_refused_is_told_under_the_runs_name(watched):
    federation, said = watched()

    def other(kind, name, message):
        if kind == "settle request" and name == "site-0":
            header = message.header.model_copy(update={"survivors": ("site-1",)})
            return type(message)(header, message.plan)
        return message

    federation.tamper = other
    with pytest.raises(FedllmError):
        federation.round()
    assert said[-1].startswith(
        "run 'bank' (run-1), round 1 of 2, attempt 1, training, settle: refused after 2.0 s: "
    )


def test_no_record_enters_the_journal(watched):
    """The details stand in the site's log of rounds, which only the kit's owner reads."""
    secret = "Mrs Example has a rare disease"
    rows = [*records(20), Record({"text": secret, "label": secret}, None, None, "mrs-example:7")]
    data = {"site-0": rows, "site-1": records(20, seed=1), "site-2": records(20, seed=2)}
    federation, said = watched(data=data)
    federation.round()
    (warning,) = [line for line in said if line.startswith("WARNING")]
    assert warning == (
        "WARNING: run run-1: 1 row left out of training and evaluation (the site's log of rounds "
        "has the details)"
    )
    assert "example" not in " ".join(said).lower()


@pytest.mark.parametrize(
    "statement", ["", "[]", "{", "3", '{"run": 7, "round": -1, "attempt": true}', "[" * 10**5]
)
def test_nonsense_is_told_as_such(federation_order, statement):
    header = federation_order.header.model_copy(update={"statement": statement, "config": "="})
    asked = asked_by(type(federation_order)(header, b"", b"", b""))
    assert str(asked) in (
        "run '?' (?), round ? of ?, attempt ?, training",
        "run '?' (?), round ? of ?, attempt ?, ?",
    )


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (10**9 - 1, "999999999"), (10**9, "?"), (-1, "?"), (True, "?"), (1.0, "?")],
)
def test_numbers_are_told_in_nine_digits_at_most(federation_order, number, shown):
    header = federation_order.header.model_copy(
        update={"statement": json.dumps({"round": number, "rounds": 3, "attempt": number})}
    )
    asked = asked_by(type(federation_order)(header, b"", b"", b""))
    assert str(asked).endswith(f"round {shown} of 3, attempt {shown}, training")


@pytest.mark.parametrize(
    ("privacy", "delta"),
    [("delta = 0.5", 0.5), ("delta = 0.0", None), ("delta = 1.0", None), ("delta = 1", None)],
)
def test_a_delta_that_is_none_is_not_accounted_at(federation_order, privacy, delta):
    header = federation_order.header.model_copy(update={"config": f"[privacy]\n{privacy}"})
    assert asked_by(type(federation_order)(header, b"", b"", b"")).delta == delta


def test_the_name_of_a_run_is_remembered_until_many_others_have_begun():
    said: list[str] = []
    journal = Journal(said.append)
    for number in range(66):
        journal.done(Asked("join", f"name-{number}", f"run-{number}"), 0.0, None)
    for number in (0, 1, 65):
        journal.done(Asked("train", run=f"run-{number}"), 0.0, None)
    shown = ("?", "name-1", "name-65")
    assert [line.split("'")[1] for line in said[66:]] == list(shown)
    # What does not say its name changes nothing.
    journal.done(Asked("join", run="run-65"), 0.0, None)
    journal.done(Asked("settle", "x", "run-65"), 0.0, None)
    journal.done(Asked("train", run="run-65"), 0.0, None)
    assert said[-1].startswith("run 'name-65' (run-65)")
    assert len(said) == 71


@pytest.fixture
def federation_order(watched):
    federation, _ = watched()
    orders = []

    def catch(kind, name, message):
        if kind == "train request":
            orders.append(message)
            return None
        return message

    federation.tamper = catch
    with pytest.raises(FedllmError):
        federation.round()
    return orders[0]


def test_words_of_others_stay_on_their_line():
    said: list[str] = []
    Journal(said.append).refused(
        Asked("train"), PeerError("bad\n2026-01-01 00:00:00Z all is well" + "x" * 9999), 0.0, None
    )
    (line,) = said
    assert "\n" not in line
    assert len(line) < 700


def test_spending_is_shown_in_four_figures():
    assert str(Spent(1.23456, 1e-6, 6.7654321, 8.0, 1e-5)) == (
        "the run has spent epsilon 1.235 at delta 1e-06, 6.765 of 8 at delta 1e-05 is left"
    )


FULL = {
    errno.ENOSPC: "No space left on device",
    errno.EDQUOT: "Disk quota exceeded",
    errno.EROFS: "Read-only file system",
    errno.EACCES: "Permission denied",
}


@pytest.mark.parametrize("number", FULL)
def test_an_error_of_the_disk_is_told_at_the_site_and_travels_as_its_kind(
    watched, monkeypatch, number
):
    federation, said = watched()
    memory = federation.sites["site-0"]._account()._memory

    def full(*_):
        raise OSError(number, FULL[number], "/kit/state/memory.json")

    monkeypatch.setattr(memory, "remember", full)
    answers = {}
    federation.tamper = lambda kind, name, m: answers.setdefault((kind, name), m)
    outcome = federation.round()
    assert outcome.survivors == ("site-1", "site-2")
    assert f"refused after 2.0 s: StorageError: /kit/state/memory.json: {FULL[number]}" in said[-1]
    refusal = answers["train", "site-0"].header.refusal
    assert refusal == Refusal(
        kind="StorageError",
        message="a disk of the site is full, or a file of its own is not in order",
        remedy="the site's own log has the details; ask its operator",
    )
    assert isinstance(refusal.to_error("site-0"), StorageError)


def test_a_full_disk_under_the_ledger_is_of_the_same_kind(watched):
    import sqlite3

    from fedllm.privacy.ledger import store

    federation, said = watched()
    answers = {}

    class Full(store.Store):
        def write(self):
            with store._explained(self.path):
                raise sqlite3.OperationalError("database or disk is full")

    def order(kind, name, message):
        if (kind, name) == ("train request", "site-0"):
            account = federation.sites[name]._opened
            account._ledger._chain._store.__class__ = Full
        return answers.setdefault((kind, name), message)

    federation.tamper = order
    federation.round()
    assert answers["train", "site-0"].header.refusal.kind == "StorageError"
    assert "LedgerError: the ledger" in said[-1]
    assert "database or disk is full" in said[-1]


def test_a_log_that_cannot_be_written_loses_neither_a_round_nor_a_refusal(watched, monkeypatch):
    """The round is paid for and trained; a line of figures is not worth it."""
    federation, said = watched()

    def full(path, line, durable=True):
        raise StorageError(f"could not write {path.name}: No space left on device")

    monkeypatch.setattr(telling, "append_line", full)
    assert federation.round().survivors == ("site-0", "site-1", "site-2")
    assert said[-2] == "WARNING: could not write site-0.log: No space left on device"
    federation.tamper = lambda kind, name, m: (
        type(m)(m.header, m.plan, m.public_key, b"") if kind == "train request" else m
    )
    with pytest.raises(PeerError):
        federation.round(2, 2)
    assert said[-2] == "WARNING: could not write site-0.log: No space left on device"


def test_an_error_that_is_not_of_the_disk_stays_what_it_is():
    error = OSError(errno.ECONNREFUSED, "Connection refused")
    assert explained(error) is error
    assert explained(ValueError("x")).args == ("x",)


def test_nothing_of_the_journal_leaves(watched):
    federation, said = watched(privacy={"epsilon": 2.0})
    sent = []

    def listen(kind, name, message):
        if not kind.endswith("request"):
            sent.append(message.to_wire()[0])
        return message

    federation.tamper = listen
    federation.round()
    assert said
    everything = " ".join(sent)
    assert "epsilon" not in everything
    assert "left" not in everything


def test_a_configuration_with_an_endless_number_is_refused_and_told(watched):
    federation, said = watched()
    seen = []

    def swap(kind, name, message):
        if kind == "join request":
            text = message.header.config + f"x = {'1' * 5000}\n"
            header = message.header.model_copy(update={"config": text})
            return type(message)(header)
        seen.append(message)
        return message

    federation.tamper = swap
    with pytest.raises(FedllmError):
        federation.round()
    assert [answer.header.refusal.kind for answer in seen] == ["PeerError"] * 3
    assert "refused" in said[0]


def test_a_journal_that_fails_loses_no_answer(watched):
    federation, _ = watched()

    def broken(*_):
        raise BrokenPipeError

    federation.sites["site-0"]._telling._journal._say = broken
    outcome = federation.round()
    assert outcome.survivors == ("site-0", "site-1", "site-2")
    log = (federation.folder / "site-0.log").read_text()
    assert '"journal": "BrokenPipeError"' in log


@pytest.mark.parametrize(
    ("said", "shown"),
    [(0, 0), (10**9 - 1, 10**9 - 1), (10**9, "?"), (-1, "?"), (True, "?"), (1.0, "?"), ("1", "?")],
)
def test_a_number_that_no_round_has_is_not_told(said, shown):
    statement = json.dumps({"run": "run-1", "round": said, "rounds": said, "attempt": said})
    asked = asked_by(Draw(SignedRound(statement=statement, signature="")))
    assert {asked.round, asked.rounds, asked.attempt} == {shown}
    assert asked.run == "run-1"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("1e-6", 1e-6),
        ("0.999", 0.999),
        ("0.0", None),
        ("1.0", None),
        ("-0.1", None),
        ("1", None),
        ("nan", None),
        ('"1e-6"', None),
    ],
)
def test_a_delta_is_taken_from_a_configuration_if_it_is_one(federation_order, said, read):
    """A refusal is told before anybody looked at the configuration."""
    assert told_of(federation_order, f"[privacy]\ndelta = {said}\n").delta == read
    assert told_of(federation_order, "privacy = 3\n").delta is None


def told_of(order, config="", **said):
    statement = json.dumps(json.loads(order.header.statement) | said)
    header = order.header.model_copy(update={"config": config, "statement": statement})
    return asked_by(type(order)(header, b"", b"", b""))


@pytest.mark.parametrize(
    ("said", "read"),
    [(0, 0), (1, 1), (10**9 - 1, 10**9 - 1), (10**9, "?"), (-1, "?"), (True, "?"), (1.0, "?")],
)
def test_numbers_of_a_message_are_told_if_they_are_some(federation_order, said, read):
    names = ("round", "rounds", "attempt")
    asked = told_of(federation_order, **dict.fromkeys(names, said))
    assert [getattr(asked, name) for name in names] == [read] * 3


@pytest.mark.parametrize(
    ("said", "read"), [("a" * 64, "a" * 64), ("a" * 65, "?"), (".a", "?"), ("a b", "?"), (7, "?")]
)
def test_names_of_a_message_are_told_if_they_are_some(federation_order, said, read):
    config = f"name = {json.dumps(said)}\n"
    asked = told_of(federation_order, config, run=said)
    assert (asked.run, asked.name) == (read, read)


def test_the_names_of_the_last_runs_are_known_and_no_more():
    said: list[str] = []
    journal = Journal(said.append)
    for number in range(70):
        journal.done(Asked("join", f"bank-{number}", f"run-{number}"), 0.0, None)
    # One that nobody named, and one that did not join.
    journal.done(Asked("join", "?", "run-69"), 0.0, None)
    journal.done(Asked("train", "other", "run-69"), 0.0, None)
    said.clear()
    for number in (69, 5, 4):
        journal.refused(Asked("settle", "?", f"run-{number}"), PeerError("no"), 1.0, None)
    assert [line.split(",")[0] for line in said] == [
        "run 'bank-69' (run-69)",
        "run 'bank-5' (run-5)",
        "run '?' (run-4)",
    ]


def test_only_what_trains_or_joins_is_told_when_it_is_done():
    said: list[str] = []
    journal = Journal(said.append)
    for message in ("join", "draw", "train", "settle", "unmask"):
        journal.done(Asked(message, "bank", "run-1"), 1.25, None)
    journal.refused(Asked("unmask", "bank", "run-1"), ValueError("Mrs Example"), 1.25, None)
    assert said == [
        "run 'bank' (run-1), from round ? of ? on, joining: done in 1.2 s",
        "run 'bank' (run-1), round ? of ?, attempt ?, ?: done in 1.2 s",
        "run 'bank' (run-1), round ? of ?, attempt ?, ?, unmask: refused after 1.2 s: ValueError "
        "(the site's log of rounds has the details)",
    ]
