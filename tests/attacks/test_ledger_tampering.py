"""Attacks on a ledger file by someone who can write it, with and without the site's key."""

import json
import shutil
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedllm.errors import FedllmError
from fedllm.privacy import budget
from fedllm.privacy.budget import Ceiling, Charge
from fedllm.privacy.events import Gaussian, canonical_bytes
from fedllm.privacy.fingerprints import FingerprintKey, identify
from fedllm.privacy.ledger import Ledger
from fedllm.privacy.ledger_audit import export_ledger, verify_ledger
from fedllm.privacy.ledger_entries import Head, TamperedError, entry_hash, make_entry

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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site.sqlite"


@pytest.fixture
def ledger(path):
    return filled(path)


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


def content(path, sequence):
    connection = sqlite3.connect(path)
    row = connection.execute("SELECT content FROM entries WHERE sequence = ?", (sequence,))
    value = json.loads(row.fetchone()[0])
    connection.close()
    return value


def is_found(path, ledger, anchor=None, everywhere=True):
    """Both the auditor and a site that starts again must notice."""
    with pytest.raises(TamperedError) as caught:
        verify_ledger(path, SIGNER.public_bytes(), anchor)
    assert caught.value.exit_code == 4
    if everywhere:
        with pytest.raises(FedllmError):
            Ledger.open(path, "site-00", SIGNER, anchor)


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
    new = (canonical_bytes(value), entry_hash(value))
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


def test_truncation_is_found_with_an_anchor(path, ledger):
    anchor = ledger.head()
    attack(path, "DELETE FROM entries WHERE sequence > 9")
    verify_ledger(path, SIGNER.public_bytes())
    is_found(path, ledger, anchor)
    with pytest.raises(TamperedError, match="exchanged or cut"):
        ledger.head()


def test_truncation_of_everything_and_deletion(path, ledger):
    anchor = ledger.head()
    attack(path, "DELETE FROM tags", "DELETE FROM entries")
    is_found(path, ledger)
    path.unlink()
    with pytest.raises(TamperedError, match="is gone"):
        Ledger.open(path, "site-00", SIGNER, anchor)


def test_old_copy_restored(path, ledger, tmp_path):
    copy = tmp_path / "copy.sqlite"
    shutil.copy(path, copy)
    data = next(iter(ledger._state.datasets))
    ledger.reserve(Charge("run", 9, data, (Gaussian(10.0),)), CEILING)
    anchor = ledger.head()
    shutil.copy(copy, path)
    is_found(path, ledger, anchor)
    with pytest.raises(TamperedError):
        ledger.reserve(Charge("run", 10, data, (Gaussian(10.0),)), CEILING)


def test_begun_anew_by_the_site_itself(path, ledger, tmp_path):
    anchor = ledger.head()
    path.unlink()
    again = filled(path)
    verify_ledger(path, SIGNER.public_bytes())
    is_found(path, again, anchor)


def test_rewritten_by_another_key(path, ledger):
    path.unlink()
    forged = filled(path, signer=THIEF)
    verify_ledger(path)  # it agrees with itself
    is_found(path, forged)


def test_appended_by_another_key(path, ledger):
    entry = make_entry(THIEF, "site-00", ledger.head(), "commit", {"reserve": 4})
    row = (entry.sequence, canonical_bytes(entry.content), entry.hash, entry.signature)
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row))
    is_found(path, ledger)
    with pytest.raises(TamperedError):
        ledger.head()


def test_entry_of_a_fork_spliced_in(path, ledger, tmp_path):
    # Both entries 12 carry the right site, number and signature; only the chain tells.
    fork = tmp_path / "fork.sqlite"
    shutil.copy(path, fork)
    data = next(iter(ledger._state.datasets))
    for number in (8, 9):
        ledger.reserve(Charge("run", number, data, (Gaussian(10.0, 3),)), CEILING)
    Ledger.open(fork, "site-00", SIGNER).reserve(
        Charge("run", 8, data, (Gaussian(1000.0),)), CEILING
    )
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
    row = (entry.sequence, canonical_bytes(entry.content), entry.hash, entry.signature)
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row))
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
    with pytest.raises(TamperedError):
        Ledger.open(path, "site-00", SIGNER).register(identify([Record("z")], KEY))


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
    ],
)
def test_signed_nonsense(path, ledger, kind, body):
    # A faulty program with the site's key: right chain, right signature, impossible meaning.
    entry = make_entry(SIGNER, "site-00", ledger.head(), kind, body)
    row = (entry.sequence, canonical_bytes(entry.content), entry.hash, entry.signature)
    attack(path, ("INSERT INTO entries VALUES (?, ?, ?, ?)", row))
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
            (12, canonical_bytes(value), digest, signature),
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
    with pytest.raises(TamperedError):
        verify_ledger(path)
    with pytest.raises(FedllmError):
        Ledger.open(path, "site-00", SIGNER)
    assert path.read_bytes() == before, "evidence is left as it was"


def exported(path, tmp_path):
    out = tmp_path / "audit.jsonl"
    export_ledger(path, out)
    return out, out.read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    "change", ["edit", "remove", "swap", "spell", "tags", "cut line", "repeat", "extra"]
)
def test_changed_export(path, ledger, tmp_path, change):
    out, lines = exported(path, tmp_path)
    if change == "edit":
        lines[3] = lines[3].replace(b'"noise_multiplier":10.0', b'"noise_multiplier":99.0')
    elif change == "remove":
        del lines[3]
    elif change == "swap":
        lines[3], lines[5] = lines[5], lines[3]
    elif change == "spell":
        lines[3] = lines[3].replace(b'"noise_multiplier":10.0', b'"noise_multiplier":10.00')
    elif change == "tags":
        line = json.loads(lines[1])
        del line["tags"]
        lines[1] = canonical_bytes(line) + b"\n"
    elif change == "cut line":
        lines[-1] = lines[-1][:-20]
    elif change == "repeat":
        lines.append(lines[-1])
    elif change == "extra":
        lines[3] = canonical_bytes({**json.loads(lines[3]), "note": 1}) + b"\n"
    out.write_bytes(b"".join(lines))
    with pytest.raises(TamperedError):
        verify_ledger(out, SIGNER.public_bytes())


def test_truncated_export_is_found_with_an_anchor(path, ledger, tmp_path):
    out, lines = exported(path, tmp_path)
    out.write_bytes(b"".join(lines[:-2]))
    verify_ledger(out, SIGNER.public_bytes())
    with pytest.raises(TamperedError, match="cut off"):
        verify_ledger(out, SIGNER.public_bytes(), ledger.head())


def test_anchor_in_the_middle(path, ledger):
    middle = content(path, 6)["previous"]
    verify_ledger(path, None, Head(5, middle))
    with pytest.raises(TamperedError, match="rewritten"):
        verify_ledger(path, None, Head(5, "0" * 64))


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
        row = (sequence, canonical_bytes(after.content), after.hash, after.signature)
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
    row = (entry.sequence, canonical_bytes(entry.content), entry.hash, entry.signature)
    attack(
        path,
        ("INSERT INTO entries VALUES (?, ?, ?, ?)", row),
        ("INSERT INTO tags VALUES (?, ?, ?)", (entry.sequence, identity.record_tags, b"")),
    )
    with pytest.raises(TamperedError, match="does not name all data sets"):
        verify_ledger(path, SIGNER.public_bytes())
