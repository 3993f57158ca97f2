"""A site's own program that charges wrongly, with the right key."""

from __future__ import annotations

import pytest
from support.ledger import CEILING, KEY, SIGNER, Record, attack, is_found, row

from fedllm.canonical import canonical_json
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger import budget
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import TamperedError, make_entry
from fedllm.privacy.ledger.fingerprints import identify


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
    data = next(iter(ledger._state.datasets))
    for number in range(10, 40):
        ledger.reserve(Charge("run", number, data, (Gaussian(10.0),)), CEILING)
    with pytest.raises(TamperedError, match="above its ceiling"):
        ledger.verify()


def test_a_charge_above_the_ceiling_for_colluders_is_found(path, ledger, monkeypatch):
    monkeypatch.setattr(budget.BudgetGuard, "require", lambda *arguments: None)
    data = next(iter(ledger._state.datasets))
    ceiling = Ceiling(100.0, 1e-5, 101.0)
    alone = (Gaussian(0.05),)
    ledger.reserve(Charge("run", 10, data, (Gaussian(10.0),), alone), ceiling)
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


def test_planted_bug_overlap_not_named(path, ledger):
    # Signed by the site, but hiding that the new data set holds old records.
    identity = identify([Record("a"), Record("new")], KEY)
    body = {"dataset": identity.id, "overlaps": [], "description": identity.describe()}
    entry = make_entry(SIGNER, "site-00", ledger.head(), "dataset", body)
    attack(
        path,
        ("INSERT INTO entries VALUES (?, ?, ?, ?)", row(entry)),
        ("INSERT INTO tags VALUES (?, ?, ?)", (entry.sequence, identity.record_tags, b"")),
    )
    with pytest.raises(TamperedError, match="does not name all data sets"):
        verify_ledger(path, SIGNER.public_bytes())
