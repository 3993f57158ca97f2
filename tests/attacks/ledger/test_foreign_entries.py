"""Entries of another key, another site, or another course of the same ledger."""

from __future__ import annotations

import shutil
import sqlite3

import pytest
from support.ledger import CEILING, SIGNER, THIEF, attack, filled, is_found, row

from fedllm.errors import FedllmError
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.budget import Charge
from fedllm.privacy.ledger.entries import TamperedError, make_entry
from fedllm.privacy.ledger.ledger import Ledger


def test_rewritten_by_another_key(path, ledger):
    path.unlink()
    forged = filled(path, signer=THIEF)
    verify_ledger(path)  # it agrees with itself
    is_found(path, forged)


def test_appended_by_another_key(path, ledger):
    entry = make_entry(THIEF, "site-00", ledger.head(), "commit", {"reserve": 4})
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row(entry)))
    is_found(path, ledger)
    with pytest.raises(TamperedError):
        ledger.head()


def test_entry_of_a_fork_spliced_in(path, ledger, tmp_path):
    # Both entries 12 carry the right site, number and signature; only the chain tells.
    fork = tmp_path / "fork.sqlite"
    shutil.copy(path, fork)
    for number in (8, 9):
        ledger.reserve(Charge("run", number, "", (Gaussian(10.0, 3),)), CEILING)
    Ledger.open(fork, "site-00", SIGNER).reserve(Charge("run", 8, "", (Gaussian(1000.0),)), CEILING)
    connection = sqlite3.connect(fork)
    row = connection.execute(
        "SELECT content, hash, signature FROM entries WHERE sequence = 12"
    ).fetchone()
    connection.close()
    attack(
        path, ("UPDATE entries SET content = ?, hash = ?, signature = ? WHERE sequence = 12", row)
    )
    is_found(path, ledger)


def test_signature_taken_from_another_entry(path, ledger):
    attack(
        path,
        "UPDATE entries SET signature = (SELECT signature FROM entries WHERE sequence = 6) "
        "WHERE sequence = 4",
    )
    is_found(path, ledger)


def test_ledger_of_another_site(path, ledger, tmp_path):
    other = tmp_path / "other.sqlite"
    filled(other, site="site-01", rounds=0)
    shutil.copy(other, path)
    with pytest.raises(FedllmError):
        Ledger.open(path, "site-00", SIGNER)
    with pytest.raises(TamperedError):
        ledger.head()


def test_entries_of_another_site_spliced_in(path, ledger):
    entry = make_entry(SIGNER, "site-01", ledger.head(), "commit", {"reserve": 4})
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row(entry)))
    is_found(path, ledger)
