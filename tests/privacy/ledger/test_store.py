"""The file of a ledger: whose it is, and that nothing half-done stays in it."""

from __future__ import annotations

import json
import re
import sqlite3

import pytest
from support.ledger import CEILING, SIGNER

from fedllm.errors import FedllmError
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.budget import Charge
from fedllm.privacy.ledger.entries import NoLedgerError, TamperedError
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.store import Store


@pytest.fixture
def path(tmp_path):
    Ledger.open(tmp_path / "site.sqlite", "site-00", SIGNER)
    return tmp_path / "site.sqlite"


def count(path) -> int:
    with Store(path).read() as view:
        return len(list(view.entries()))


def test_the_file_of_another_program_is_no_ledger(path):
    assert count(path) == 1
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA application_id = 7")
    connection.close()
    for hold in (Store(path).read, Store(path).write):
        with pytest.raises(TamperedError, match="is not a fedllm ledger"), hold():
            pass


def test_a_ledger_that_is_not_there_is_not_made(tmp_path):
    for hold in (Store(tmp_path / "x.sqlite").read, Store(tmp_path / "x.sqlite").write):
        with pytest.raises(NoLedgerError, match="there is no ledger at"), hold():
            pass
    assert list(tmp_path.iterdir()) == []


def test_what_broke_off_is_not_there_and_holds_nobody_up(path):
    with Store(path).read() as view:
        (row,) = view.entries()
    with pytest.raises(RuntimeError, match="broke"), Store(path).write() as transaction:
        transaction._connection.execute("CREATE TABLE half_done (x)")
        raise RuntimeError("it broke")
    with Store(path).write() as transaction:
        assert list(transaction.entries()) == [row]
        found = transaction._connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert ("half_done",) not in found


def test_what_only_reads_cannot_write(path):
    with pytest.raises(FedllmError, match="cannot be used"), Store(path).read() as view:
        view._connection.execute("CREATE TABLE more (x)")
    assert count(path) == 1


def test_the_second_who_makes_a_ledger_is_told_so_and_changes_nothing(path):
    before = path.read_bytes()
    with Store(path).read() as view:
        assert [entry.sequence for entry in view.entries()] == [1]
    ledger = Ledger.open(path, "site-00", SIGNER)
    assert ledger is not None
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == ["site.sqlite"]


def test_two_ledgers_of_one_key_are_told_apart_by_32_random_bytes(path, tmp_path):
    Ledger.open(tmp_path / "other.sqlite", "site-00", SIGNER)
    found = []
    for one in (path, tmp_path / "other.sqlite"):
        with Store(one).read() as view:
            (entry,) = view.entries()
        body = json.loads(entry.content)["body"]
        assert set(body) == {"public_key", "nonce"}
        assert body["public_key"] == SIGNER.public_bytes().hex()
        found.append(bytes.fromhex(body["nonce"]))
    assert [len(nonce) for nonce in found] == [32, 32]
    assert found[0] != found[1]


def test_an_entry_says_the_minute_and_no_finer_time(tmp_path):
    """Between the entries of a round stands how long records took to compute."""
    ledger = Ledger.open(tmp_path / "ledger.sqlite", "site-00", SIGNER)
    charge = Charge("run", 1, "", (Gaussian(10.0, 1),))
    ledger.commit(ledger.reserve(charge, CEILING))
    with Store(tmp_path / "ledger.sqlite").read() as view:
        times = [json.loads(entry.content)["time"] for entry in view.entries()]
    assert len(times) == 3
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d\+00:00", time) for time in times)
