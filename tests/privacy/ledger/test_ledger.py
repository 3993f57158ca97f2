"""The ledger: budget over runs and overlapping data, crashes, several processes."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedllm.errors import BudgetError
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian
from fedllm.privacy.ledger import ledger as ledger_module
from fedllm.privacy.ledger.audit import export_ledger, verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import Head, LedgerError, LedgerRefusal, TamperedError
from fedllm.privacy.ledger.fingerprints import FingerprintKey, identify
from fedllm.privacy.ledger.ledger import Ledger

CEILING = Ceiling(2.0, 1e-5)
ROUND = Gaussian(10.0)  # 25 of them fit under the ceiling
KEY = FingerprintKey(b"a secret of the site")


class TestSigner:
    __test__ = False

    def __init__(self, seed=1):
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)

    def public_bytes(self):
        return self._key.public_key().public_bytes_raw()

    def sign(self, message):
        return self._key.sign(message)


SIGNER = TestSigner()


@dataclass(frozen=True)
class Record:
    content: bytes
    unit: str | None = None

    def canonical(self):
        return self.content


def dataset(*names, unit="record", persons=None):
    persons = persons or [None] * len(names)
    return identify([Record(n.encode(), p) for n, p in zip(names, persons, strict=True)], KEY, unit)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site-00.sqlite"


@pytest.fixture
def ledger(path):
    return Ledger.open(path, "site-00", SIGNER)


def charge(data, count=1, run="run", number=0, **more):
    return Charge(run, number, data, (Gaussian(10.0, count),), **more)


def test_what_was_spent_until_an_entry_leaves_out_what_came_later(ledger):
    data = ledger.register(dataset("a", "b"))
    first = ledger.reserve(charge(data, 3), CEILING)
    ledger.commit(first)
    second = ledger.reserve(charge(data, 2, number=1), CEILING)
    one, two = Gaussian(10.0, 3), Gaussian(10.0, 2)
    expected = {first - 1: [], first: [one], second - 1: [one], second: [one, two]}
    found = {until: ledger._state.spent(data, until=until) for until in expected}
    assert found == expected
    assert ledger._state.spent(data) == [one, two]


def test_reserve_commit_and_reopen(ledger, path):
    data = ledger.register(dataset("a", "b"))
    first = ledger.reserve(charge(data, 3), CEILING)
    ledger.commit(first)
    second = ledger.reserve(charge(data, 2, number=1), CEILING)
    assert second == first + 2
    again = Ledger.open(path, "site-00", SIGNER)
    assert again.events(data) == [Gaussian(10.0, 3), Gaussian(10.0, 2)]
    assert again.spent(data, 1e-5) == epsilon([Gaussian(10.0, 5)], 1e-5)
    assert again.head() == ledger.head()
    report = again.verify(ledger.head()).datasets[0]
    assert (report.runs[0].committed, report.runs[0].reserved_only) == (1, 1)
    assert report.spent.value == again.spent(data, 1e-5).value
    assert path.stat().st_mode & 0o077 == 0


def test_reserved_is_on_disk_before_it_returns(ledger, path):
    data = ledger.register(dataset("a"))
    number = ledger.reserve(charge(data), CEILING)
    with sqlite3.connect(path) as connection:
        assert (number,) in connection.execute("SELECT sequence FROM entries").fetchall()


def test_ceiling_holds_over_runs_and_never_restarts(ledger, path):
    data = ledger.register(dataset("a", "b"))
    done = 0
    with pytest.raises(BudgetError):
        for run in range(10):
            # Every run opens the ledger anew, as a new process would.
            site = Ledger.open(path, "site-00", SIGNER)
            for number in range(5):
                site.reserve(
                    charge(site.register(dataset("b", "a")), 1, f"r{run}", number), CEILING
                )
                done += 1
    assert epsilon([ROUND] * done, 1e-5).value <= 2.0 < epsilon([ROUND] * (done + 1), 1e-5).value
    head = ledger.head()
    with pytest.raises(BudgetError):
        ledger.reserve(charge(data), CEILING)
    assert ledger.head() == head, "a refused charge writes nothing"
    ledger.verify()


def test_check_refuses_a_whole_run_and_writes_nothing(ledger):
    data = ledger.register(dataset("a"))
    head = ledger.head()
    ledger.check([charge(data, number=n) for n in range(20)], CEILING)
    with pytest.raises(BudgetError, match="rounds 0 to 39"):
        ledger.check([charge(data, number=n) for n in range(40)], CEILING)
    assert ledger.head() == head


@pytest.mark.parametrize(
    "names", [("a", "b"), ("b", "a", "a"), ("a",), ("a", "b", "c"), ("b", "z", "y")]
)
def test_same_subset_superset_and_overlap_spend_the_same_budget(ledger, names):
    data = ledger.register(dataset("a", "b"))
    ledger.reserve(charge(data, 20), CEILING)
    other = ledger.register(dataset(*names))
    assert ledger.events(other) == ledger.events(data)
    with pytest.raises(BudgetError):
        ledger.reserve(charge(other, 6, "another"), CEILING)
    # And the other way round: what is charged to the new one counts for the old one.
    ledger.reserve(charge(other, 1, "another"), CEILING)
    assert ledger.spent(data, 1e-5) == epsilon([Gaussian(10.0, 21)], 1e-5)


def test_disjoint_data_has_its_own_budget(ledger):
    ledger.reserve(charge(ledger.register(dataset("a", "b")), 20), CEILING)
    other = ledger.register(dataset("c", "d"))
    assert ledger.events(other) == []
    ledger.reserve(charge(other, 20), CEILING)


def test_a_record_is_never_charged_beyond_the_ceiling_through_bridges(ledger):
    first = ledger.register(dataset("a", "b"))
    ledger.reserve(charge(first, 10), CEILING)
    bridge = ledger.register(dataset("b", "c"))
    ledger.reserve(charge(bridge, 10), CEILING)
    with pytest.raises(BudgetError):
        ledger.reserve(charge(ledger.register(dataset("a", "b", "c")), 6), CEILING)
    ledger.verify()


def test_a_person_links_data_sets(ledger):
    first = ledger.register(dataset("a", "b", unit="person", persons=["p", "q"]))
    ledger.reserve(charge(first, 20), CEILING)
    other = ledger.register(dataset("c", "d", unit="person", persons=["q", "r"]))
    with pytest.raises(BudgetError):
        ledger.reserve(charge(other, 6), CEILING)


@pytest.mark.parametrize(("before", "after"), [("record", "person"), ("person", "record")])
def test_units_do_not_mix(ledger, before, after):
    first = ledger.register(dataset("a", "b", unit=before, persons=["p", "q"]))
    ledger.reserve(charge(first), CEILING)
    other = ledger.register(dataset("a", "b", unit=after, persons=["p", "q"]))
    assert ledger.events(other) == [NonPrivate()]
    with pytest.raises(BudgetError):
        ledger.reserve(charge(other), CEILING)


def test_two_views_are_kept_apart(ledger):
    data = ledger.register(dataset("a"))
    share = (Gaussian(3.0),)
    ledger.reserve(charge(data, colluder_events=share), CEILING)
    ledger.reserve(charge(data, run="local"), CEILING)
    assert ledger.events(data) == [ROUND, ROUND]
    assert ledger.events(data, "colluders") == [Gaussian(3.0), ROUND]
    report = ledger.verify().datasets[0]
    assert report.spent_against_colluders.value > report.spent.value


def test_the_same_round_again_is_paid_again(ledger):
    data = ledger.register(dataset("a"))
    first, second = (ledger.reserve(charge(data), CEILING) for _ in range(2))
    assert first != second
    assert ledger.spent(data, 1e-5) == epsilon([ROUND, ROUND], 1e-5)


def test_evaluation_is_charged_beside_training(ledger):
    data = ledger.register(dataset("a"))
    ledger.reserve(charge(data), CEILING)
    ledger.reserve(charge(data, purpose="evaluation"), CEILING)
    assert len(ledger.events(data)) == 2


def test_commit_needs_a_reservation_and_happens_once(ledger):
    data = ledger.register(dataset("a"))
    number = ledger.reserve(charge(data), CEILING)
    ledger.commit(number)
    for wrong in (number, number + 1, 1, 999):
        with pytest.raises(LedgerRefusal):
            ledger.commit(wrong)


def test_unknown_data_set_is_refused(ledger):
    with pytest.raises(LedgerRefusal, match="not in the ledger"):
        ledger.reserve(charge("f" * 64), CEILING)


def test_registering_twice_writes_once(ledger):
    ledger.register(dataset("a", "b"))
    head = ledger.head()
    ledger.register(dataset("b", "a"))
    assert ledger.head() == head


def test_another_secret_site_or_key_is_refused(ledger, path):
    ledger.register(dataset("a"))
    stranger = identify([Record(b"a")], FingerprintKey(b"another secret of a site"))
    with pytest.raises(LedgerRefusal, match="another site secret"):
        ledger.register(stranger)
    with pytest.raises(LedgerRefusal, match="another site"):
        Ledger.open(path, "site-01", SIGNER)
    with pytest.raises(LedgerRefusal, match="another site key"):
        Ledger.open(path, "site-00", TestSigner(2))


def test_non_private_needs_an_unlimited_ceiling_and_ends_the_budget(ledger):
    data = ledger.register(dataset("a"))
    open_end = Ceiling(float("inf"), 1e-5)
    with pytest.raises(BudgetError):
        ledger.reserve(Charge("r", 0, data, (NonPrivate(),)), CEILING)
    ledger.reserve(Charge("r", 0, data, (NonPrivate(),)), open_end)
    with pytest.raises(BudgetError):
        ledger.reserve(charge(data), CEILING)
    ledger.verify()


def test_the_ceiling_for_colluders_holds_beside_the_other(path, ledger):
    data = ledger.register(dataset("a"))
    ceiling = Ceiling(2.0, 1e-5, 6.0)

    def shared(number, noise=10.0):
        alone = (Gaussian(noise / 4),)
        return Charge("r", number, data, (Gaussian(noise),), alone)

    ledger.reserve(shared(0), ceiling)
    ledger.reserve(shared(1), ceiling)
    alone = ledger.spent(data, 1e-5, "colluders").value
    with pytest.raises(BudgetError, match="for everyone else colluding; its ceiling is 6"):
        for number in range(2, 40):
            ledger.reserve(shared(number), ceiling)
    assert alone < ledger.spent(data, 1e-5, "colluders").value <= 6.0
    assert ledger.spent(data, 1e-5).value < 2.0, "the other ceiling was not the reason"
    with pytest.raises(BudgetError, match="for everyone else colluding"):
        ledger.check([shared(40)], ceiling)
    again = Ledger.open(path, "site-00", SIGNER)
    (report,) = again.verify().datasets
    assert report.ceiling == ceiling


def test_local_noise_counts_for_colluders_as_for_all(ledger):
    data = ledger.register(dataset("a"))
    with pytest.raises(BudgetError, match="for everyone else"):
        ledger.reserve(Charge("r", 0, data, (Gaussian(1.0),)), Ceiling(10.0, 1e-5, 1.0))


def test_poisson_rounds_compose_as_one_run(ledger):
    data = ledger.register(dataset("a"))
    ceiling = Ceiling(7.1, 1e-5)
    for number in range(4):
        events = (PoissonGaussian(0.1, 1.0, 25),)
        ledger.reserve(Charge("r", number, data, events), ceiling)
    assert ledger.spent(data, 1e-5).value == pytest.approx(7.0466, abs=1e-3)
    with pytest.raises(BudgetError):
        ledger.reserve(Charge("r", 4, data, events), ceiling)


def test_threads_cannot_overspend(ledger):
    data = ledger.register(dataset("a"))
    reserved = []

    def work():
        try:
            while True:
                reserved.append(ledger.reserve(charge(data), CEILING))
        except BudgetError:
            return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(reserved)) == len(reserved)
    assert (
        ledger.spent(data, 1e-5).value <= 2.0 < epsilon([ROUND] * (len(reserved) + 1), 1e-5).value
    )


WORKER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ledger import SIGNER, Ceiling, Charge, Gaussian, Ledger, Path, dataset
from fedllm.errors import BudgetError
ledger = Ledger.open(Path(sys.argv[1]), "site-00", SIGNER)
data = ledger.register(dataset("a", "b"))
ceiling = Ceiling(2.0, 1e-5)
try:
    for number in range(1000):
        reserved = ledger.reserve(Charge(sys.argv[2], number, data, (Gaussian(10.0),)), ceiling)
        print(reserved, flush=True)
        ledger.commit(reserved)
except BudgetError:
    print("refused", flush=True)
"""


def worker(path, name):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WORKER, str(path), name],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_processes_cannot_overspend(path):
    # The file does not exist yet: they also race to make it.
    processes = [worker(path, f"run{n}") for n in range(3)]
    lines = [line for process in processes for line in process.communicate(timeout=900)[0].split()]
    assert lines.count("refused") == 3
    reserved = [int(line) for line in lines if line.isdigit()]
    assert len(set(reserved)) == len(reserved)
    found = Ledger.open(path, "site-00", SIGNER).verify()
    total = found.datasets[0].runs
    assert sum(run.committed for run in total) == len(reserved)
    assert found.datasets[0].spent.value <= 2.0
    assert epsilon([ROUND] * (len(reserved) + 1), 1e-5).value > 2.0


def reserve_until_killed(path, run, pipe):
    ledger = Ledger.open(path, "site-00", SIGNER)
    data = ledger.register(dataset("a", "b"))
    for number in range(1_000_000):
        reserved = ledger.reserve(charge(data, 1, run, number), Ceiling(1e9, 1e-5))
        os.write(pipe, b"%d\n" % reserved)
        ledger.commit(reserved)


def kill_in_a_loop(path, kills):
    reported = set()
    for kill in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                reserve_until_killed(path, f"run{kill}", writer)
            finally:
                os._exit(1)
        os.close(writer)
        with open(reader, "rb") as stream:
            # Before the file exists, or some rounds in; then at no special point.
            lines = [stream.readline() for _ in range(kill % 4)]
            time.sleep((kill * 0.618034) % 1 * 0.1)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            output = b"".join(lines) + stream.read()
        # A line is one write of a few bytes to a pipe, so it is there whole or not at all.
        reported |= {(f"run{kill}", int(line)) for line in output.split()}
        ledger = Ledger.open(path, "site-00", SIGNER)
        found = {(r.run, number) for number, r in ledger._state.reservations.items()}
        assert reported <= found
    assert len(reported) >= kills, "the children were killed before they did anything"
    ledger.verify(ledger.head())
    data = ledger.register(dataset("a", "b"))
    assert len(ledger.events(data)) >= len(reported)


def test_kill_never_loses_a_charge(path):
    kill_in_a_loop(path, 20)


@pytest.mark.slow
def test_two_hundred_kills_never_lose_a_charge(path):
    kill_in_a_loop(path, 200)


def test_crash_before_the_commit_of_the_file_charges_nothing(ledger, path, monkeypatch):
    data = ledger.register(dataset("a"))
    head = ledger.head()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger_module.Transaction, "append", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.reserve(charge(data), CEILING)
    monkeypatch.undo()
    assert ledger.head() == head
    ledger.reserve(charge(data), CEILING)
    ledger.verify()


def test_full_disk_refuses_and_keeps_what_was_there(ledger, path):
    import resource

    data = ledger.register(dataset("a"))
    ledger.reserve(charge(data), CEILING)
    head = ledger.head()
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        with pytest.raises(LedgerError, match="cannot be used"):
            for number in range(1, 100):
                ledger.reserve(charge(data, number=number, run="x" * 500), Ceiling(1e6, 1e-5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert ledger.verify(head).head.sequence >= head.sequence
    ledger.reserve(charge(data, number=100), Ceiling(1e6, 1e-5))


def test_read_only_folder_is_refused_but_can_be_audited():
    folder = Path(tempfile.mkdtemp(dir=tempfile.gettempdir()))
    try:
        path = folder / "site.sqlite"
        ledger = Ledger.open(path, "site-00", SIGNER)
        data = ledger.register(dataset("a"))
        path.chmod(0o444)
        folder.chmod(0o555)
        as_root = os.geteuid() == 0
        if as_root:
            os.seteuid(65534)
        try:
            verify_ledger(path)
            with pytest.raises(LedgerError):
                ledger.reserve(charge(data), CEILING)
            with pytest.raises(LedgerError):
                Ledger.open(folder / "new.sqlite", "site-00", SIGNER)
        finally:
            if as_root:
                os.seteuid(0)
    finally:
        import shutil

        folder.chmod(0o700)
        shutil.rmtree(folder)


def test_missing_file_is_not_made_by_reading(tmp_path):
    with pytest.raises(LedgerError):
        verify_ledger(tmp_path / "no.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_export_says_the_same(ledger, path, tmp_path):
    data = ledger.register(dataset("a", "b", persons=["p", None]))
    ledger.register(dataset("b", "c"))
    ledger.commit(ledger.reserve(charge(data, 3), CEILING))
    out = tmp_path / "audit.jsonl"
    head = export_ledger(path, out)
    assert head == ledger.head()
    assert verify_ledger(out, SIGNER.public_bytes(), [head]) == ledger.verify()
    assert len(out.read_text().splitlines()) == head.sequence


def test_commands(ledger, path, tmp_path):
    import json

    from typer.testing import CliRunner

    from fedllm.commands.ledger import app

    data = ledger.register(dataset("a", "b"))
    ledger.commit(ledger.reserve(charge(data, 3, run="[bold]odd"), CEILING))
    ledger.reserve(charge(data, 3, number=1), CEILING)
    runner, head = CliRunner(), ledger.head()
    shown = runner.invoke(app, ["show", str(path)])
    assert shown.exit_code == 0
    assert "[bold]odd" in shown.output
    values = json.loads(runner.invoke(app, ["show", str(path), "--json"]).output)
    assert values["datasets"][0]["ceiling"] == {
        "epsilon": 2.0,
        "delta": 1e-5,
        "colluders_epsilon": None,
    }
    assert [run["reserved_only"] for run in values["datasets"][0]["runs"]] == [0, 1]
    key = SIGNER.public_bytes().hex()
    verify = ["verify", str(path), "--public-key", key, "--anchor"]
    assert runner.invoke(app, [*verify, str(head)]).exit_code == 0
    wrong = runner.invoke(app, [*verify, f"{head.sequence + 1}:{head.hash}"])
    assert isinstance(wrong.exception, TamperedError)
    assert wrong.exception.exit_code == 4
    out = tmp_path / "out.jsonl"
    assert runner.invoke(app, ["export", str(path), "--out", str(out)]).exit_code == 0
    assert runner.invoke(app, ["verify", str(out)]).exit_code == 0


def test_head_as_text():
    head = Head(12, "ab" * 32)
    assert Head.parse(str(head)) == head
