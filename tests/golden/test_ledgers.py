"""Kept ledgers, exports, heads, fingerprints and events are read for ever, and mean the same."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from dataclasses import replace
from math import inf

import pytest
from golden.kept import V1, V2, V3, V4, damaged, identity, read_lines

from fedllm import clock
from fedllm.canonical import canonical_json
from fedllm.errors import BudgetError, FedllmError
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import (
    Gaussian,
    NonPrivate,
    PoissonDiscreteGaussian,
    PoissonGaussian,
    Stated,
    from_json,
    to_json,
)
from fedllm.privacy.ledger.audit import export_ledger, read_state, spending_of, verify_ledger
from fedllm.privacy.ledger.budget import VIEWS, Ceiling, Charge
from fedllm.privacy.ledger.charges import Carried, carry_body, reservation_body
from fedllm.privacy.ledger.entries import Head, TamperedError, make_entry
from fedllm.privacy.ledger.heads import keep_heads, read_heads, signed_head
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.rules import promises

LEDGER = V1 / "ledger"
FIRST, SECOND = LEDGER / "first.sqlite", LEDGER / "second.sqlite"
NAMED = V2 / "ledger" / "named.sqlite"
# Charged by account, and what carries that over.
BY_ACCOUNT, CARRIED = V3 / "ledger" / "first.sqlite", V3 / "ledger" / "second.sqlite"
# Charges that belong to orders, and settled sums.
BY_ORDER = V4 / "round" / "sites" / "anne.sqlite"
KEY = identity("anne").public_bytes()
NEW_KEY = identity("anne with new keys").public_bytes()
LOST_KEY = identity("anne with lost keys").public_bytes()

DATASETS = {
    "records": "c37278defe4423f5cba3c8635d91e47a5cbd20c739820d965527199caadc61ff",
    "more": "b8559afe6ab5c0aa1c077c8fc313bb4a93ce19054a167a8b1e9d4a12ec4738e4",
    "persons": "fb9bc650d8f72b5f12ccdd127fee509d216d14d555f3b96eff73581a0f84aa12",
    "open": "4d68588a41980b4825f0b69bdfded66262fdda06fe089a2a2f1d3bb3c64f4524",
}
LOCAL = PoissonGaussian(0.01, 1.25, 10)
DISCRETE = PoissonDiscreteGaussian(0.05, 2.0, 1, 2, 5283, 3730.66638261651, 40)
DISCRETE_ALONE = PoissonDiscreteGaussian(0.05, 1.4143740073360345, 1, 1, 5283, 3730.66638261651, 40)


EVENTS = [
    ('{"noise_multiplier":1.25,"sampling_rate":0.01,"steps":10,"type":"poisson_gaussian"}', LOCAL),
    (
        '{"noise_multiplier":0.0,"sampling_rate":1.0,"steps":0,"type":"poisson_gaussian"}',
        PoissonGaussian(1.0, 0.0, 0),
    ),
    ('{"count":1,"noise_multiplier":12.5,"type":"gaussian"}', Gaussian(12.5, 1)),
    (
        '{"clipping_steps":3730.66638261651,"length":40,"noise_multiplier":2.0,'
        '"sampling_rate":0.05,"share_deviation":5283,"shares":2,"steps":1,'
        '"type":"poisson_discrete_gaussian"}',
        DISCRETE,
    ),
    ('{"type":"non_private"}', NonPrivate()),
    ('{"delta":1e-06,"epsilon":2.5,"type":"stated"}', Stated(2.5, 1e-6)),
]


def test_each_event_is_read_and_written_as_it_was():
    lines = (V1 / "events" / "events.jsonl").read_text().splitlines()
    assert lines == [text for text, _ in EVENTS]
    for line, (_, event) in zip(lines, EVENTS, strict=True):
        assert from_json(json.loads(line)) == event
        assert canonical_json(to_json(event)) == line.encode()


def _suffix(path):
    return path.suffix


def seen(charge):
    return charge.events, charge.colluder_events


def the_charges(state):
    return [
        (c.run, c.round, c.attempt, c.purpose, c.dataset, c.delta, c.ceiling, *seen(c))
        for c in state.reservations.values()
    ]


@pytest.mark.parametrize("name", ["first.sqlite", "first.jsonl"])
def test_a_ledger_and_its_export_say_what_they_said(name):
    state = read_state(LEDGER / name, KEY)
    ceiling, open_ended = Ceiling(30.0, 1e-5, 60.0), Ceiling(inf, 1e-5)
    rows, more, persons, bare = (DATASETS[n] for n in ("records", "more", "persons", "open"))
    local, none, evaluation = (LOCAL,), (NonPrivate(),), (Gaussian(12.5),)
    shared, alone = (PoissonGaussian(0.05, 2.0, 1),), (PoissonGaussian(0.05, 1.0, 1),)
    train = "training"
    assert the_charges(state) == [
        ("local", 1, 1, train, rows, 1e-5, ceiling, local, local),
        ("local", 1, 2, train, rows, 1e-5, ceiling, local, local),
        ("distributed", 1, 1, train, rows, 1e-6, ceiling, shared, alone),
        ("discrete", 3, 1, train, more, 1e-5, ceiling, (DISCRETE,), (DISCRETE_ALONE,)),
        ("local", 1, 1, "evaluation", rows, 1e-5, ceiling, evaluation, evaluation),
        ("persons", 1, 1, train, persons, 1e-5, ceiling, local, local),
        ("open", 1, 1, train, bare, 1e-5, open_ended, none, none),
        ("open", 1, 2, train, bare, 1e-5, open_ended, none, none),
    ]
    assert (state.site, state.public_key, state.carried) == ("anne", KEY, [])
    assert [d.id for d in state.datasets.values()] == [rows, more, persons, bare]
    assert [d.unit for d in state.datasets.values()] == ["record", "record", "person", "record"]
    assert state.datasets[more].overlaps == (rows,)
    assert set(state.reservations) - set(state.committed) == {6}
    assert {c.account for c in state.reservations.values()} == {""}
    assert state.head is not None
    assert state.head.sequence == 20


def test_its_spending_holds_by_the_rule_of_its_time_and_counts_for_the_account():
    found = verify_ledger(FIRST, KEY)
    assert found.by_dataset == 8
    (account,) = found.accounts
    assert (account.account, account.spent.value) == ("", inf), "one data set was open"
    limits = {
        (promise.who, promise.view): epsilon(promise.events, promise.delta).value
        for promise in promises(read_state(FIRST, KEY), "")
    }
    ids = {name: f"data set {DATASETS[name][:12]}" for name in DATASETS}
    assert set(limits) == {
        (ids[name], view) for name in ("records", "more", "persons") for view in VIEWS
    }
    # Accountants may get sharper; what was charged does not vanish.
    assert 0.17 < limits[ids["persons"], "sums"] < 0.2
    assert 0.2 < limits[ids["records"], "sums"] < limits[ids["records"], "colluders"] <= 60


def test_a_ledger_that_carries_over_still_does():
    state = read_state(SECOND, NEW_KEY)
    head = str(read_state(FIRST, KEY).head)
    _, carried = spending_of(FIRST)
    assert {one.unit for one in carried} == {"record", "person"}
    assert all(one.covers == (KEY.hex(),) and one.head == head for one in carried)
    stated = Carried(
        (LOST_KEY.hex(),), "", "record", (Stated(2.0, 1e-7),), (NonPrivate(),), sequence=4
    )
    # Until version 6 nothing was said of the runs.
    assert all(one.runs for one in carried)
    assert [carry_body(one) for one in state.carried] == [
        carry_body(replace(one, runs=())) for one in (*carried, stated)
    ]
    assert state.covered() == {KEY.hex(), LOST_KEY.hex()}
    everything = Counter(event for one in carried for event in one.events)
    assert everything[LOCAL] == 3
    assert everything[NonPrivate()] == 2
    assert everything[DISCRETE] == 1
    assert state.spent("", "record")[-2:] == [Stated(2.0, 1e-7), LOCAL]


@pytest.mark.parametrize("path", [BY_ACCOUNT, BY_ACCOUNT.with_suffix(".jsonl")], ids=_suffix)
def test_a_ledger_by_account_says_what_it_said(path):
    state = read_state(path, KEY)
    evaluation, shared = (Gaussian(12.5),), (PoissonGaussian(0.05, 2.0, 1),)
    assert [
        (c.run, c.name, c.round, c.attempt, c.purpose, c.account, c.delta, c.events)
        for c in state.reservations.values()
    ] == [
        ("local", "", 1, 1, "training", "", 1e-5, (LOCAL,)),
        ("local", "a run of Köln", 1, 2, "training", "", 1e-5, (LOCAL,)),
        ("distributed", "", 1, 1, "training", "oncology", 1e-6, shared),
        ("discrete", "", 3, 1, "training", "surgery", 1e-5, (DISCRETE,)),
        ("local", "", 1, 1, "evaluation", "", 1e-5, evaluation),
    ]
    assert {c.unit for c in state.reservations.values()} == {"person"}
    assert state.accounts() == ["", "oncology", "surgery"]
    assert state.spent("oncology", "person") == [LOCAL, LOCAL, *shared, *evaluation]
    assert state.spent("surgery", "person") == [LOCAL, LOCAL, DISCRETE, *evaluation]
    assert len(state.spent("", "person")) == 5
    found = verify_ledger(path, KEY, read_heads(V3 / "ledger" / "ledger_heads.jsonl")["anne"])
    assert (len(found.accounts), found.by_dataset) == (3, 0)


def test_a_ledger_that_carries_accounts_over_still_does():
    state = read_state(CARRIED, NEW_KEY)
    _, carried = spending_of(BY_ACCOUNT)
    assert [(one.account, one.unit) for one in state.carried] == [
        *((name, "person") for name in ("", "oncology", "surgery")),
        ("", "record"),
    ]
    assert [carry_body(one) for one in state.carried[:3]] == [
        carry_body(replace(one, runs=())) for one in carried
    ]
    assert DISCRETE not in state.spent("oncology", "person")
    assert DISCRETE in state.spent("surgery", "person")
    assert verify_ledger(CARRIED, NEW_KEY).accounts[0].spent.value == inf


def stored(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    rows = connection.execute("SELECT * FROM entries ORDER BY sequence").fetchall()
    connection.close()
    return rows


@pytest.mark.parametrize(
    ("path", "signer"),
    [
        (FIRST, "anne"),
        (SECOND, "anne with new keys"),
        (NAMED, "anne"),
        (BY_ACCOUNT, "anne"),
        (CARRIED, "anne with new keys"),
        (BY_ORDER, "anne"),
    ],
    ids=["first", "second", "named", "by account", "carried", "by order"],
)
def test_today_every_entry_would_be_written_byte_for_byte_as_it_was(path, signer, monkeypatch):
    previous: Head | None = None
    for sequence, content, digest, signature in stored(path):
        entry = json.loads(content)
        # To the millisecond until version 5.
        monkeypatch.setattr(clock, "utc_minute", lambda time=entry["time"]: time)
        site = entry["site"]
        made = make_entry(identity(signer), site, previous, entry["kind"], entry["body"])
        assert (made.sequence, made.hash, made.signature) == (sequence, digest, signature)
        assert canonical_json(made.content) == content
        previous = made.head


@pytest.mark.parametrize(
    "path", [FIRST, SECOND, NAMED, BY_ACCOUNT, CARRIED, BY_ORDER], ids=lambda p: p.stem
)
def test_what_is_read_is_what_would_be_written(path):
    entries = {row[0]: json.loads(row[1]) for row in stored(path)}
    state = read_state(path)
    for sequence, reservation in state.reservations.items():
        assert reservation_body(reservation) == entries[sequence]["body"]
    for carried in state.carried:
        assert carry_body(carried) == entries[carried.sequence]["body"]
    for known in state.datasets.values():
        assert entries[known.sequence]["body"]["description"] == dict(known.description)


@pytest.mark.parametrize("account", ["", "oncology"])
def test_a_site_goes_on_with_a_kept_ledger(tmp_path, account):
    path = tmp_path / "ledger.sqlite"
    shutil.copy(NAMED, path)
    ledger = Ledger.open(path, "anne", identity("anne"))
    before = ledger.head().sequence
    assert ledger.events(account) == [LOCAL, LOCAL], "whatever the records are"
    charge = Charge("named", 1, account, (LOCAL,))
    number = ledger.reserve(charge, Ceiling(30.0, 1e-5, 60.0))
    assert number == ledger.head().sequence == before + 1
    assert read_state(path, KEY).reservations[number].attempt == 3
    two, three = (epsilon([LOCAL] * count, 1e-5).value for count in (2, 3))
    for ceiling in (two, three):
        with pytest.raises(BudgetError):
            ledger.reserve(charge, Ceiling(ceiling, 1e-5))
    ledger.verify()


def test_nothing_is_left_where_a_kept_ledger_was_open_or_had_two_units(tmp_path):
    path = tmp_path / "ledger.sqlite"
    shutil.copy(FIRST, path)
    ledger = Ledger.open(path, "anne", identity("anne"))
    for unit in ("record", "person"):
        with pytest.raises(BudgetError):
            ledger.reserve(Charge("local", 1, "", (LOCAL,), unit=unit), Ceiling(1e6, 1e-5))


@pytest.mark.parametrize("path", [NAMED, NAMED.with_suffix(".jsonl")], ids=lambda p: p.suffix)
def test_a_charge_may_have_the_name_of_its_run(path):
    state = read_state(path, KEY)
    found = [(c.run, c.name, c.attempt, c.events) for c in state.reservations.values()]
    assert found == [("named", "a run of Köln", 1, (LOCAL,)), ("named", "", 2, (LOCAL,))]
    assert all(charge.name == "" for charge in read_state(FIRST, KEY).reservations.values())
    bodies = [json.loads(row[1])["body"] for row in stored(NAMED)]
    assert [body["run_name"] for body in bodies if "run_name" in body] == ["a run of Köln"]


EXPORTS = pytest.mark.parametrize(
    "path",
    [FIRST, NAMED, BY_ACCOUNT, BY_ORDER],
    ids=["first", "named", "by account", "by order"],
)


@EXPORTS
def test_the_export_is_written_as_it_was(tmp_path, path):
    export_ledger(path, tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_bytes() == path.with_suffix(".jsonl").read_bytes()


@EXPORTS
def test_the_export_is_refused_when_a_byte_changed(tmp_path, path):
    content = path.with_suffix(".jsonl").read_bytes()
    path = tmp_path / "export.jsonl"
    for changed in damaged(content, every=89):
        path.write_bytes(changed)
        with pytest.raises(FedllmError):
            read_state(path, KEY)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET content = CAST(replace(content, '10', '11') AS BLOB)"
        " WHERE sequence = 6",
        "UPDATE entries SET hash = zeroblob(32) WHERE sequence = 6",
        "UPDATE entries SET signature = zeroblob(64) WHERE sequence = 20",
        "UPDATE tags SET records = zeroblob(96) WHERE sequence = 2",
    ],
)
def test_the_file_is_refused_when_a_field_changed(tmp_path, statement):
    path = tmp_path / "ledger.sqlite"
    shutil.copy(FIRST, path)
    connection = sqlite3.connect(path)
    names = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    for (trigger,) in connection.execute(names).fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    assert connection.execute(statement).rowcount == 1
    connection.commit()
    connection.close()
    with pytest.raises(TamperedError):
        read_state(path, KEY)


def test_kept_heads_are_in_the_ledger_and_signed(tmp_path):
    path = LEDGER / "ledger_heads.jsonl"
    heads = read_heads(path)
    assert set(heads) == {"anne"}
    assert [head.sequence for head in heads["anne"]] == [6, 8, 10, 12, 14, 16]
    for head in heads["anne"]:
        assert signed_head(str(head), head.signature, KEY, "anne") == head
    read_state(FIRST, KEY, heads["anne"])
    lines = read_lines(path)
    assert [(line["run"], line["round"]) for line in lines] == [("kept", n) for n in range(1, 7)]
    for line, head in zip(lines, heads["anne"], strict=True):
        keep_heads(tmp_path / "again.jsonl", line["run"], line["round"], {"anne": head})
    assert (tmp_path / "again.jsonl").read_bytes() == path.read_bytes()


def test_a_head_is_refused_when_a_byte_changed(tmp_path):
    path = tmp_path / "heads.jsonl"
    line = (LEDGER / "ledger_heads.jsonl").read_bytes().splitlines(keepends=True)[2]
    start = line.index(b'"head": "') + len('"head": "')
    # Run and round say where the coordinator met it, and are not signed.
    for changed in damaged(line[:-3], every=17, start=start):
        path.write_bytes(changed + line[-3:])
        with pytest.raises(FedllmError):
            read_state(FIRST, KEY, read_heads(path)["anne"])
