"""A site's own program that charges wrongly, with the right key."""

from __future__ import annotations

import pytest
from support.ledger import (
    CEILING,
    SIGNER,
    append,
    attack,
    charge_before,
    identity,
    is_found,
    register,
)

from fedllm.canonical import canonical_json
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger import budget
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import TamperedError, make_entry
from fedllm.privacy.ledger.ledger import Ledger


def test_planted_bug_accountant_restarted_each_round(path, ledger, monkeypatch):
    # A site program that forgets what was spent keeps charging; the auditor's sum does not.
    honest = budget.BudgetGuard.require
    monkeypatch.setattr(
        budget.BudgetGuard,
        "require",
        lambda self, spent, planned, ceiling, what, view="sums": honest(
            self, [], planned, ceiling, what, view
        ),
    )
    for number in range(10, 40):
        ledger.reserve(Charge("run", number, "", (Gaussian(10.0),)), CEILING)
    with pytest.raises(TamperedError, match="above its ceiling"):
        ledger.verify()


def test_a_charge_above_the_ceiling_for_colluders_is_found(path, ledger, monkeypatch):
    monkeypatch.setattr(budget.BudgetGuard, "require", lambda *arguments: None)
    ceiling = Ceiling(100.0, 1e-5, 101.0)
    alone = (Gaussian(0.05),)
    ledger.reserve(Charge("run", 10, "", (Gaussian(10.0),), alone), ceiling)
    with pytest.raises(TamperedError, match="for everyone else colluding, above its ceiling 101"):
        ledger.verify()


def test_planted_bug_a_step_is_not_recorded(path, ledger):
    # A program that skips an entry leaves a gap in the chain, even with the right key.
    head = ledger.head()
    skipped = make_entry(SIGNER, "site-00", head, "commit", {"reserve": 4})
    after = make_entry(SIGNER, "site-00", skipped.head, "commit", {"reserve": 6})
    for sequence in (after.sequence, skipped.sequence):
        row = (sequence, canonical_json(after.content), after.hash, after.signature)
        attack(
            path,
            f"DELETE FROM entries WHERE sequence > {head.sequence}",
            ("INSERT INTO entries VALUES (?, ?, ?, ?)", row),
        )
        is_found(path, ledger)


def test_planted_bug_overlap_not_named(tmp_path):
    # Signed by the site, but hiding that the new data set holds old records.
    path = tmp_path / "before.sqlite"
    Ledger.open(path, "site-00", SIGNER)
    register(path, "a", "b")
    new = identity("a", "new")
    body = {"dataset": new.id, "overlaps": [], "description": new.describe()}
    append(path, "dataset", body, (new.record_tags, b""))
    with pytest.raises(TamperedError, match="does not name all data sets"):
        verify_ledger(path, SIGNER.public_bytes())


def test_a_program_of_before_that_charged_too_much_is_still_found(tmp_path):
    path = tmp_path / "before.sqlite"
    Ledger.open(path, "site-00", SIGNER)
    part, whole = register(path, "a", "b"), register(path, "b", "c")
    charge_before(path, part, (Gaussian(10.0, 15),), CEILING)
    verify_ledger(path)
    charge_before(path, whole, (Gaussian(10.0, 15),), CEILING, 1)
    with pytest.raises(TamperedError, match=f"data set {whole[:12]} was charged to epsilon 2"):
        verify_ledger(path)


@pytest.mark.parametrize("kind", ["dataset", "reserve"])
def test_a_ledger_never_goes_back_to_charging_by_data_set(path, ledger, kind):
    """It would be a way out of the account: a charge that only a new data set counts."""
    known = next(iter(ledger._chain.state.datasets))
    with pytest.raises(TamperedError, match="impossible"):
        if kind == "dataset":
            register(path, "quite", "new")
        else:
            charge_before(path, known, (Gaussian(10.0),), CEILING)
        verify_ledger(path)
    with pytest.raises(TamperedError):
        ledger.head()
