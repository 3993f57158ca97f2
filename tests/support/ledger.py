"""A filled ledger, and what someone does to it who can write the file."""

from __future__ import annotations

import json
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedllm.canonical import canonical_json
from fedllm.errors import FedllmError
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import TamperedError
from fedllm.privacy.ledger.fingerprints import FingerprintKey, identify
from fedllm.privacy.ledger.ledger import Ledger

CEILING = Ceiling(2.0, 1e-5)
KEY = FingerprintKey(b"a secret of the site")


class Signer:
    def __init__(self, seed=1):
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)

    def public_bytes(self):
        return self._key.public_key().public_bytes_raw()

    def sign(self, message):
        return self._key.sign(message)


class Record:
    unit = None

    def __init__(self, content):
        self._content = content.encode()

    def canonical(self):
        return self._content


SIGNER, THIEF = Signer(1), Signer(2)


def filled(path, site="site-00", signer=SIGNER, rounds=4, records=("a", "b")):
    ledger = Ledger.open(path, site, signer)
    first = ledger.register(identify([Record(r) for r in records], KEY))
    ledger.register(identify([Record(r) for r in (*records, "c")], KEY))
    for number in range(rounds):
        ledger.commit(ledger.reserve(Charge("run", number, first, (Gaussian(10.0),)), CEILING))
    return ledger


def attack(path, *statements):
    """Change the file as its owner can: the triggers are dropped first."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA foreign_keys = OFF")
    for (name,) in connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'trigger'"
    ).fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(*statement) if isinstance(statement, tuple) else connection.execute(
            statement
        )
    connection.commit()
    connection.close()


def row(entry):
    """An entry as the table holds it."""
    return entry.sequence, canonical_json(entry.content), entry.hash, entry.signature


def content(path, sequence):
    connection = sqlite3.connect(path)
    row = connection.execute("SELECT content FROM entries WHERE sequence = ?", (sequence,))
    value = json.loads(row.fetchone()[0])
    connection.close()
    return value


def is_found(path, ledger, anchor=None, everywhere=True):
    """Both the auditor and a site that starts again must notice."""
    with pytest.raises(TamperedError) as caught:
        verify_ledger(path, SIGNER.public_bytes(), () if anchor is None else (anchor,))
    assert caught.value.exit_code == 4
    if everywhere:
        with pytest.raises(FedllmError):
            Ledger.open(path, "site-00", SIGNER, anchor)
