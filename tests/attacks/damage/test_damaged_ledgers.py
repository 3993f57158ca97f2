"""Ledgers, exports, heads and privacy events: success or a FedllmError, whatever comes."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from support import damage
from support.damage import Target, at, check, text
from support.ledger import CEILING, SIGNER, charge_before, filled, register

from fedllm.canonical import canonical_json
from fedllm.commands.ledger_text import as_json, print_tables
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
from fedllm.privacy.discrete import share_deviation
from fedllm.privacy.ledger.audit import export_ledger, spending_of, verify_ledger
from fedllm.privacy.ledger.entries import Head, entry_hash
from fedllm.privacy.ledger.heads import keep_heads, read_heads, signed_head
from fedllm.privacy.ledger.ledger import Ledger

EVENTS = (
    PoissonGaussian(0.1, 1.0, 3),
    Gaussian(10.0, 2),
    NonPrivate(),
    Stated(1.0, 1e-5),
    PoissonDiscreteGaussian(0.1, 1.0, 3, 2, share_deviation(1.0, 2, 1e4, 10), 1e4, 10),
)


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """A ledger that was charged by data set."""
    path = tmp_path_factory.mktemp("before") / "site.sqlite"
    Ledger.open(path, "site-00", SIGNER)
    charge_before(path, register(path, "a", "b"), (Gaussian(10.0),), CEILING)
    charge_before(path, register(path, "b"), (Gaussian(10.0),), CEILING, 1)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("ledger") / "site.sqlite"
    ledger = filled(path, rounds=1)
    ledger.carry(spending_of(path)[1])
    return path


def shown(path):
    """Do what the commands do with a ledger."""
    found = verify_ledger(path)
    json.dumps(as_json(found, path), allow_nan=False).encode()
    print_tables(found, path)
    return spending_of(path)


def test_ledger_files(whole, tmp_path):
    path = tmp_path / "site.sqlite"
    shutil.copy(whole, path)

    def read():
        verify_ledger(path)
        return Ledger.open(path, "site-00", SIGNER).head()

    check(Target("ledger", whole.read_bytes(), at(path, read), damage.in_bytes))


def test_tables_of_another_program(whole, tmp_path):
    """The columns have no types: what is stored there may be anything."""
    connection = sqlite3.connect(whole)
    tables = {
        table: connection.execute(f"SELECT * FROM {table} ORDER BY sequence").fetchall()
        for table in ("entries", "tags")
    }
    connection.close()
    path = tmp_path / "site.sqlite"

    def read(content):
        path.unlink(missing_ok=True)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA application_id = 1179405361")
        connection.execute("CREATE TABLE entries (sequence, content, hash, signature)")
        connection.execute("CREATE TABLE tags (sequence, records, persons)")
        for table, row in json.loads(content):
            values = [bytes.fromhex(v[4:]) if str(v)[:4] == "hex:" else v for v in row]
            marks = ",".join("?" * len(row))
            connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)
        connection.commit()
        connection.close()
        verify_ledger(path)

    def plain(row):
        return [f"hex:{value.hex()}" if isinstance(value, bytes) else value for value in row]

    sample = json.dumps([[table, plain(row)] for table in tables for row in tables[table]]).encode()

    def other_types(content, chance):
        rows = json.loads(content)
        _, row = chance.choice(rows)
        row[chance.randrange(len(row))] = chance.choice(
            (None, 0, -1, 2**62, 1.5, "", "x", "\x00", "hex:", "hex:ff", "hex:" + "00" * 32)
        )
        return json.dumps(rows).encode()

    check(Target("tables", sample, read, other_types), share=0.3)


def entries_signed_anew(lines):
    """Chain and sign damaged entries as a site could that lies to its auditor."""
    entries, previous = [], "0" * 64
    for line in lines.splitlines():
        value = json.loads(line)
        content = value["content"] | {"previous": previous}
        digest = entry_hash(content)
        signature = SIGNER.sign(b"fedllm.ledger.signature.v1\n" + digest)
        value |= {"content": content, "hash": digest.hex(), "signature": signature.hex()}
        previous = digest.hex()
        entries.append(canonical_json(value) + b"\n")
    return b"".join(entries)


@pytest.mark.parametrize("ledger", ["whole", "before"])
def test_exports(ledger, tmp_path, capsys, request):
    path = tmp_path / "export.jsonl"
    export_ledger(request.getfixturevalue(ledger), path)
    sample = path.read_bytes()

    def dress(content):
        try:
            return entries_signed_anew(content)
        except Exception:
            return content

    def read():
        return shown(path)

    check(
        Target("export", sample, at(path, read), damage.in_lines),
        Target("export signed anew", sample, at(path, read), damage.in_lines, dress),
    )


def test_heads_that_were_kept(whole, tmp_path):
    head = verify_ledger(whole).head
    head = Head(head.sequence, head.hash, SIGNER.sign(b"x").hex())
    path = tmp_path / "ledger_heads.jsonl"
    keep_heads(path, "run", 1, {"site-00": head, "site-01": head})
    check(
        Target(
            "kept heads", path.read_bytes(), at(path, lambda: read_heads(path)), damage.in_lines
        ),
        Target("anchor", str(head).encode(), lambda c: Head.parse(text(c)), damage.in_bytes),
    )
    head = Ledger.open(whole, "site-00", SIGNER).head()

    def read(content):
        said, _, signature = text(content).partition(" ")
        signed_head(said, signature, SIGNER.public_bytes(), "site-00")

    sample = f"{head} {head.signature}".encode()
    check(Target("signed head", sample, read, damage.in_bytes))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_privacy_events(event):
    def read(content):
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            return
        found = from_json(value)
        epsilon([found], 1e-5)
        canonical_json(to_json(found))

    check(
        Target(type(event).__name__, json.dumps(to_json(event)).encode(), read, damage.in_json),
        share=0.5,
    )
