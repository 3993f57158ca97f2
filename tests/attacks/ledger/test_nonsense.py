"""Files and entries that no site program of ours would write."""

from __future__ import annotations

import json
import sqlite3

import pytest
from support.ledger import SIGNER, attack, content, is_found, row

from fedllm.canonical import canonical_json
from fedllm.privacy.ledger.audit import export_ledger, verify_ledger
from fedllm.privacy.ledger.entries import NoLedgerError, TamperedError, entry_hash, make_entry
from fedllm.privacy.ledger.ledger import Ledger


@pytest.mark.parametrize("kind", ["TEXT", "INTEGER", "NULL"])
def test_wrong_column_types(path, ledger, kind):
    value = {"TEXT": "'x'", "INTEGER": "5", "NULL": "NULL"}[kind]
    attack(
        path,
        "CREATE TABLE loose AS SELECT * FROM entries",
        "DROP TABLE tags",
        "DROP TABLE entries",
        "ALTER TABLE loose RENAME TO entries",
        "CREATE TABLE tags (sequence, records, persons)",
        f"UPDATE entries SET signature = {value} WHERE sequence = 4",
    )
    is_found(path, ledger)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("commit", {"reserve": 2}),
        ("commit", {"reserve": 4}),
        ("commit", {"reserve": [4]}),
        ("commit", {"reserve": 10, "more": 1}),
        ("open", {}),
        ("refund", {"reserve": 4}),
        ("dataset", {"dataset": "x", "overlaps": ["y"], "description": {"unit": "record"}}),
        ("reserve", {"run": "run"}),
        ("carry", {"covers": [], "head": ""}),
    ],
)
def test_signed_nonsense(path, ledger, kind, body):
    # A faulty program with the site's key: right chain, right signature, impossible meaning.
    entry = make_entry(SIGNER, "site-00", ledger.head(), kind, body)
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row(entry)))
    is_found(path, ledger)


@pytest.mark.parametrize(
    "changed",
    [
        {"account": 1},
        {"account": None},
        {"unit": "site"},
        {"dataset": ""},
        {"dataset": "0" * 64},
        {"account": ..., "dataset": ""},
        {"account": ..., "dataset": "0" * 64},
        {"account": ...},
        {"unit": ...},
    ],
    ids=str,
)
def test_a_signed_charge_to_nothing(path, ledger, changed):
    body = {**content(path, 4)["body"], "round": 77, **changed}
    body = {key: value for key, value in body.items() if value is not ...}
    entry = make_entry(SIGNER, "site-00", ledger.head(), "reserve", body)
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row(entry)))
    is_found(path, ledger)


def test_nonsense_clock_is_no_error(path, ledger):
    entry = make_entry(SIGNER, "site-00", ledger.head(), "open", {})
    value = {**entry.content, "kind": "reserve", "time": "1970-01-01T00:00:00+00:00"}
    body = content(path, 4)["body"]
    value["body"] = {**body, "round": 77}
    digest = entry_hash(value)
    signature = SIGNER.sign(b"fedllm.ledger.signature.v1\n" + digest)
    attack(
        path,
        (
            "INSERT INTO entries VALUES (?, ?, ?, ?)",
            (12, canonical_json(value), digest, signature),
        ),
    )
    assert verify_ledger(path, SIGNER.public_bytes()).head.sequence == 12


def test_other_spelling_of_the_same_content(path, ledger):
    value = content(path, 4)
    spelled = json.dumps(value, indent=1).encode()
    attack(path, ("UPDATE entries SET content = ? WHERE sequence = 4", (spelled,)))
    is_found(path, ledger)


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "pages", "other database"])
def test_damaged_file_is_refused(path, ledger, damage):
    whole = path.read_bytes()
    if damage == "other database":
        path.unlink()
        sqlite3.connect(path).execute("CREATE TABLE x (y)").connection.close()
    else:
        path.write_bytes(
            {
                "garbage": b"not a ledger" * 100,
                "empty": b"",
                "cut": whole[: len(whole) // 2],
                "pages": whole[:4096] + bytes(len(whole) - 4096),
            }[damage]
        )
    before = path.read_bytes()
    # Text in its place never was a ledger to a reader; the site trains with neither.
    nothing_left = damage == "garbage"
    with pytest.raises(NoLedgerError if nothing_left else TamperedError) as caught:
        verify_ledger(path)
    assert caught.value.exit_code == (2 if nothing_left else 4)
    with pytest.raises(TamperedError):
        Ledger.open(path, "site-00", SIGNER)
    assert path.read_bytes() == before, "evidence is left as it was"


@pytest.mark.parametrize(
    "other",
    [
        b"site,epsilon\nsite-00,1.5\n",
        b"# Notes\n",
        b'{"round": 1, "sites": 3}\n',
        b"[1, 2]",
        bytes(range(256)) * 20,
    ],
    ids=["csv", "text", "metrics", "json", "binary"],
)
def test_another_file_is_a_wrong_path_and_no_tampering(tmp_path, other):
    path = tmp_path / "other"
    path.write_bytes(other)
    with pytest.raises(NoLedgerError, match="is not a ledger") as caught:
        verify_ledger(path)
    assert caught.value.exit_code == 2


def test_damage_to_the_first_bytes_is_still_damage(path, ledger, tmp_path):
    out = tmp_path / "out.jsonl"
    export_ledger(path, out)
    for file in (path, out):
        content = file.read_bytes()
        for place in range(16):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(TamperedError):
                verify_ledger(file)
