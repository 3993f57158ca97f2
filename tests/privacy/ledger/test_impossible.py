"""Entries that the site's own key signed and that say what cannot be."""

from __future__ import annotations

import pytest
from support.ledger import CEILING, SIGNER, append, identity, register

from fedllm.errors import FedllmError
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import read_state, verify_ledger
from fedllm.privacy.ledger.budget import Charge
from fedllm.privacy.ledger.charges import Carried, Reservation, carry_body, reservation_body
from fedllm.privacy.ledger.entries import LedgerRefusal, TamperedError, make_entry
from fedllm.privacy.ledger.fingerprints import DESCRIPTION
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.store import Store

EVENTS = (Gaussian(20.0),)


@pytest.fixture
def path(tmp_path):
    Ledger.open(tmp_path / "site.sqlite", "site-00", SIGNER)
    return tmp_path / "site.sqlite"


def body(**changes):
    values = {
        "sequence": 0,
        "run": "run",
        "round": 1,
        "attempt": 1,
        "purpose": "training",
        "account": "",
        "unit": "record",
        "delta": 1e-5,
        "ceiling": CEILING,
        "events": EVENTS,
        "colluder_events": EVENTS,
    }
    return reservation_body(Reservation(**values | changes))


def test_a_charge_as_the_program_writes_it_is_read_as_it_was(path):
    append(path, "reserve", body())
    (found,) = read_state(path).reservations.values()
    assert (found.run, found.order_attempt, found.statement, found.dataset) == ("run", 0, "", "")
    assert found.seen_by("sums") == found.seen_by("everyone else") == EVENTS


@pytest.mark.parametrize(
    "changed",
    [
        {"attempt": 0},
        {"attempt": 2},
        {"attempt": 1.0},
        {"round": 1.5},
        {"round": "1"},
        {"run": 7},
        {"account": 7},
        {"purpose": None},
        {"unit": "house"},
        {"delta": 1},
        {"events": []},
        {"statement": "zz" * 32},
        {"statement": "aa" * 31},
        {"order_attempt": True},
        {"more": 1},
    ],
    ids=str,
)
def test_a_charge_that_cannot_be_is_refused(path, changed):
    append(path, "reserve", body() | changed)
    with pytest.raises(TamperedError):
        read_state(path)


@pytest.mark.parametrize("missing", sorted(body()))
def test_a_charge_without_one_of_its_fields_is_refused(path, missing):
    append(path, "reserve", {key: value for key, value in body().items() if key != missing})
    with pytest.raises(TamperedError):
        read_state(path)


@pytest.mark.parametrize(
    "changed",
    [
        {"dataset": 7},
        {"dataset": ""},
        {"overlaps": ["ff" * 32]},
        {"more": 1},
        {"description": {}},
        {"description": {"unit": "house"}},
        {"description": {"more": 1}},
    ],
    ids=str,
)
def test_a_data_set_that_cannot_be_is_refused(path, changed):
    dataset = identity("one", "two")
    described = dataset.describe()
    right = {"dataset": dataset.id, "overlaps": [], "description": described}
    if changed.get("description"):
        changed = {"description": {**described, **changed["description"]}}
    append(path, "dataset", right | changed, (dataset.record_tags, b""))
    with pytest.raises(TamperedError):
        read_state(path)


def test_a_data_set_is_registered_once_and_before_any_account_is_charged(path):
    register(path, "one")
    with pytest.raises(TamperedError):
        register(path, "one")
        read_state(path)


def test_a_charge_of_a_data_set_has_its_unit(path):
    name = register(path, "one")
    append(path, "reserve", body(dataset=name, unit="person"))
    with pytest.raises(TamperedError):
        read_state(path)


def test_data_sets_are_not_gone_back_to(path):
    append(path, "reserve", body())
    register(path, "one")
    with pytest.raises(TamperedError):
        read_state(path)


@pytest.mark.parametrize(
    "changed",
    [{"covers": []}, {"unit": "house"}, {"account": 7}, {"more": 1}, {"head": 7}, {"covers": [7]}],
    ids=str,
)
def test_what_was_carried_over_can_be(path, changed):
    right = carry_body(Carried(("ab" * 32,), "", "record", EVENTS, EVENTS))
    append(path, "carry", right | changed)
    with pytest.raises(TamperedError):
        read_state(path)


@pytest.mark.parametrize("missing", sorted(DESCRIPTION))
def test_a_data_set_that_is_not_described_is_refused(path, missing):
    dataset = identity("one", "two")
    left = {key: value for key, value in dataset.describe().items() if key != missing}
    body = {"dataset": dataset.id, "overlaps": [], "description": left}
    append(path, "dataset", body, (dataset.record_tags, b""))
    with pytest.raises(TamperedError):
        read_state(path)


def test_a_commit_says_nothing_else(path):
    append(path, "reserve", body())
    append(path, "commit", {"reserve": 2, "more": 1})
    with pytest.raises(TamperedError):
        read_state(path)


@pytest.mark.parametrize("reserve", [2.0, True, "2", None, 1, 3])
def test_only_a_charge_is_committed_and_by_its_number(path, reserve):
    append(path, "reserve", body())
    append(path, "commit", {"reserve": reserve})
    with pytest.raises(TamperedError):
        read_state(path)


def test_a_charge_is_committed_once(path):
    append(path, "reserve", body())
    append(path, "commit", {"reserve": 2})
    assert read_state(path).committed == {2: 3}
    append(path, "commit", {"reserve": 2})
    with pytest.raises(TamperedError):
        read_state(path)


def test_an_entry_of_another_site_is_noticed_by_who_uses_the_ledger(path):
    ledger = Ledger.open(path, "site-00", SIGNER)
    append(path, "reserve", body(), site="site-01")
    with pytest.raises(TamperedError):
        ledger.reserve(Charge("run", 1, "", EVENTS), CEILING)


def test_a_signature_that_does_not_hold_is_never_stored():
    class Wrong:
        public_bytes = SIGNER.public_bytes

        def sign(self, message: bytes) -> bytes:
            return SIGNER.sign(message + b"x")

    with pytest.raises(LedgerRefusal, match="the site's key made a wrong signature"):
        make_entry(Wrong(), "site-00", None, "reserve", {})


def test_a_ledger_is_made_once(path, tmp_path):
    entry = make_entry(SIGNER, "site-00", None, "genesis", {})
    before = path.read_bytes()
    assert Store(path).create(entry) is False
    assert path.read_bytes() == before
    folder = tmp_path / "new" / "folder"
    assert Store(folder / "x.sqlite").create(entry) is True
    assert [one.name for one in folder.iterdir()] == ["x.sqlite"]


def test_what_is_shown_of_a_ledger_says_whose_it_is_and_nothing_else(path):
    text = repr(Ledger.open(path, "site-00", SIGNER))
    assert text == f"Ledger({str(path)!r}, site='site-00')"
    dataset = identity("one")
    assert repr(dataset) == f"DatasetIdentity({dataset.id[:12]}, unit='record')"


def test_a_charge_is_of_no_order_unless_it_says_so():
    charge = Charge("run", 1, "", EVENTS)
    assert (charge.delta, charge.order_attempt, charge.statement) == (1e-5, 0, "")


def test_an_export_without_a_line_is_no_ledger(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"")
    with pytest.raises(FedllmError):
        verify_ledger(tmp_path / "x.jsonl")
