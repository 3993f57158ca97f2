"""Entries changed, removed, repeated or put in another order."""

from __future__ import annotations

import sqlite3

import pytest
from support.ledger import attack, content, is_found

from fedllm.canonical import canonical_json
from fedllm.privacy.ledger.entries import entry_hash


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET content = x'00' WHERE sequence = 4",
        "DELETE FROM entries WHERE sequence = 4",
        "UPDATE tags SET records = x'00'",
        "DELETE FROM tags",
        "INSERT OR REPLACE INTO entries SELECT 4, content, hash, signature FROM entries "
        "WHERE sequence = 5",
        "INSERT INTO entries SELECT 99, content, hash, signature FROM entries WHERE sequence = 5",
    ],
)
def test_triggers_stop_mistakes(path, ledger, statement):
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()
    ledger.verify()


@pytest.mark.parametrize("sequence", range(1, 12))
@pytest.mark.parametrize("column", ["content", "hash", "signature"])
def test_every_flipped_bit_is_found(path, ledger, sequence, column):
    connection = sqlite3.connect(path)
    (old,) = connection.execute(
        f"SELECT {column} FROM entries WHERE sequence = ?", (sequence,)
    ).fetchone()
    connection.close()
    place = len(old) // 2
    new = old[:place] + bytes([old[place] ^ 1]) + old[place + 1 :]
    attack(path, (f"UPDATE entries SET {column} = ? WHERE sequence = ?", (new, sequence)))
    is_found(path, ledger)


def test_less_noise_claimed_with_the_hash_repaired(path, ledger):
    value = content(path, 4)
    assert value["kind"] == "reserve"
    value["body"]["events"][0]["noise_multiplier"] = 1000.0
    new = (canonical_json(value), entry_hash(value))
    attack(path, ("UPDATE entries SET content = ?, hash = ? WHERE sequence = 4", new))
    is_found(path, ledger)


@pytest.mark.parametrize("sequence", [1, 2, 4, 5, 8])
def test_removal(path, ledger, sequence):
    attack(path, f"DELETE FROM entries WHERE sequence = {sequence}")
    is_found(path, ledger)


def test_removal_with_the_rest_moved_up(path, ledger):
    attack(
        path,
        "DELETE FROM entries WHERE sequence IN (4, 5)",
        "UPDATE entries SET sequence = -(sequence - 2) WHERE sequence > 5",
        "UPDATE entries SET sequence = -sequence WHERE sequence < 0",
    )
    is_found(path, ledger)


def test_reordering(path, ledger):
    attack(
        path,
        "UPDATE entries SET sequence = -4 WHERE sequence = 4",
        "UPDATE entries SET sequence = 4 WHERE sequence = 6",
        "UPDATE entries SET sequence = 6 WHERE sequence = -4",
    )
    is_found(path, ledger)


def test_repetition(path, ledger):
    attack(
        path,
        "INSERT INTO entries SELECT 12, content, hash, signature FROM entries WHERE sequence = 11",
    )
    is_found(path, ledger)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM tags WHERE sequence = 2",
        "UPDATE tags SET records = x'00112233445566778899aabbccddeeff' WHERE sequence = 3",
        "UPDATE tags SET sequence = 4 WHERE sequence = 3",
        "UPDATE tags SET persons = x'00112233445566778899aabbccddeeff'",
    ],
)
def test_fingerprints_exchanged(path, ledger, statement):
    attack(path, statement)
    is_found(path, ledger, everywhere=False)
