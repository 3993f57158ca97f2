"""A filled ledger, and what someone does to it who can write the file."""

from __future__ import annotations

import hashlib
import json
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedllm.canonical import canonical_json
from fedllm.errors import FedllmError
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import read_state, verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.charges import Reservation, reservation_body
from fedllm.privacy.ledger.entries import TamperedError, make_entry
from fedllm.privacy.ledger.fingerprints import DatasetIdentity, share_a_tag
from fedllm.privacy.ledger.ledger import Ledger

CEILING = Ceiling(2.0, 1e-5)


class Signer:
    def __init__(self, seed=1):
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)

    def public_bytes(self):
        return self._key.public_key().public_bytes_raw()

    def sign(self, message):
        return self._key.sign(message)


SIGNER, THIEF = Signer(1), Signer(2)


def identity(*records):
    """A data set of ledgers of before; today nothing writes one."""
    tags = {hashlib.blake2b(record.encode(), digest_size=16).digest() for record in records}
    return DatasetIdentity("record", "00" * 16, b"".join(sorted(tags)), b"")


def append(path, kind, body, tags=None, signer=SIGNER, site="site-00"):
    """Append an entry as a program of before did, and return it."""
    state = read_state(path)
    entry = make_entry(signer, site, state.head, kind, body)
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?)", row(entry))
    if tags is not None:
        connection.execute("INSERT INTO tags VALUES (?, ?, ?)", (entry.sequence, *tags))
    connection.commit()
    connection.close()
    return entry


def register(path, *records, **more):
    """Make a data set known as programs of before did, and return its id."""
    dataset = identity(*records)
    connection = sqlite3.connect(path)
    tags = {n: found for n, *found in connection.execute("SELECT * FROM tags").fetchall()}
    connection.close()
    overlaps = [
        known.id
        for known in read_state(path).datasets.values()
        if share_a_tag(tags[known.sequence][0], dataset.record_tags)
    ]
    body = {"dataset": dataset.id, "overlaps": overlaps, "description": dataset.describe()}
    append(path, "dataset", body, (dataset.record_tags, b""), **more)
    return dataset.id


def charge_before(path, dataset, events, ceiling, number=0, run="before", **more):
    """Charge a data set as programs of before did, whatever the budget says."""
    charge = Reservation(
        *(0, run, number, 1, "training", "", "record", ceiling.delta, ceiling, events, events),
        dataset=dataset,
    )
    return append(path, "reserve", reservation_body(charge), **more)


def filled(path, site="site-00", signer=SIGNER, rounds=4):
    """A ledger of a site that knew two data sets and was charged since by account."""
    ledger = Ledger.open(path, site, signer)
    register(path, "a", "b", signer=signer, site=site)
    register(path, "a", "b", "c", signer=signer, site=site)
    for number in range(rounds):
        ledger.commit(ledger.reserve(Charge("run", number, "", (Gaussian(10.0),)), CEILING))
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
