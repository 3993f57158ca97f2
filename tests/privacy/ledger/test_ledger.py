"""The ledger: budget over runs and accounts, crashes, several processes."""

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedllm.errors import BudgetError
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, PoissonGaussian
from fedllm.privacy.ledger import chain as chain_module
from fedllm.privacy.ledger.audit import export_ledger, verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import Head, LedgerError, LedgerRefusal, TamperedError
from fedllm.privacy.ledger.ledger import Ledger

CEILING = Ceiling(2.0, 1e-5)
ROUND = Gaussian(10.0)  # 25 of them fit under the ceiling


class TestSigner:
    __test__ = False

    def __init__(self, seed=1):
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)

    def public_bytes(self):
        return self._key.public_key().public_bytes_raw()

    def sign(self, message):
        return self._key.sign(message)


SIGNER = TestSigner()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site-00.sqlite"


@pytest.fixture
def ledger(path):
    return Ledger.open(path, "site-00", SIGNER)


def charge(account="", count=1, run="run", number=0, **more):
    return Charge(run, number, account, (Gaussian(10.0, count),), **more)


def test_what_was_spent_until_an_entry_leaves_out_what_came_later(ledger):
    data = ""
    first = ledger.reserve(charge(data, 3), CEILING)
    ledger.commit(first)
    second = ledger.reserve(charge(data, 2, number=1), CEILING)
    one, two = Gaussian(10.0, 3), Gaussian(10.0, 2)
    expected = {first - 1: [], first: [one], second - 1: [one], second: [one, two]}
    found = {until: ledger._chain.state.spent(data, "record", until=until) for until in expected}
    assert found == expected
    assert ledger._chain.state.spent(data, "record") == [one, two]


def test_reserve_commit_and_reopen(ledger, path):
    first = ledger.reserve(charge("", 3), CEILING)
    ledger.commit(first)
    second = ledger.reserve(charge("", 2, number=1), CEILING)
    assert second == first + 2
    again = Ledger.open(path, "site-00", SIGNER)
    assert again.events("") == [Gaussian(10.0, 3), Gaussian(10.0, 2)]
    assert again.spent("", 1e-5) == epsilon([Gaussian(10.0, 5)], 1e-5)
    assert again.head() == ledger.head()
    report = again.verify(ledger.head()).accounts[0]
    assert (report.runs[0].committed, report.runs[0].reserved_only) == (1, 1)
    assert report.spent.value == again.spent("", 1e-5).value
    assert path.stat().st_mode & 0o077 == 0


def test_reserved_is_on_disk_before_it_returns(ledger, path):
    number = ledger.reserve(charge(), CEILING)
    with sqlite3.connect(path) as connection:
        assert (number,) in connection.execute("SELECT sequence FROM entries").fetchall()


def test_ceiling_holds_over_runs_and_never_restarts(ledger, path):
    done = 0
    with pytest.raises(BudgetError):
        for run in range(10):
            # Every run opens the ledger anew, as a new process would.
            site = Ledger.open(path, "site-00", SIGNER)
            for number in range(5):
                site.reserve(charge("", 1, f"r{run}", number), CEILING)
                done += 1
    assert epsilon([ROUND] * done, 1e-5).value <= 2.0 < epsilon([ROUND] * (done + 1), 1e-5).value
    head = ledger.head()
    with pytest.raises(BudgetError):
        ledger.reserve(charge(), CEILING)
    assert ledger.head() == head, "a refused charge writes nothing"
    ledger.verify()


def test_check_refuses_a_whole_run_and_writes_nothing(ledger):
    head = ledger.head()
    ledger.check([charge(number=n) for n in range(20)], CEILING)
    with pytest.raises(BudgetError, match="rounds 0 to 39"):
        ledger.check([charge(number=n) for n in range(40)], CEILING)
    assert ledger.head() == head


@pytest.mark.parametrize(("before", "after"), [("record", "person"), ("person", "record")])
def test_units_do_not_mix(ledger, before, after):
    ledger.reserve(charge(unit=before), CEILING)
    assert ledger.events("") == [ROUND]
    assert ledger.events("", unit=after) == [NonPrivate()]
    head = ledger.head()
    words = f"protects each {after}; this site's account was charged for protecting each {before}"
    for account in ("", "oncology"):
        with pytest.raises(BudgetError, match=words):
            ledger.reserve(charge(account, unit=after), CEILING)
    with pytest.raises(BudgetError, match="each"):
        ledger.check([charge(unit=before, number=1), charge(unit=after, number=2)], CEILING)
    assert ledger.head() == head
    ledger.reserve(charge(unit=before), CEILING)


def test_what_was_charged_without_a_bound_is_so_for_every_unit(ledger):
    """Runs without privacy are allowed only where nothing is limited; a change of unit is then
    written down as what it is."""
    unlimited = Ceiling(float("inf"), 1e-5)
    ledger.reserve(charge(unit="record"), unlimited)
    ledger.reserve(charge(unit="person"), unlimited)
    assert ledger.events("") == [NonPrivate(), ROUND]
    (report,) = ledger.verify().accounts
    assert (report.unit, report.spent.value) == ("person", float("inf"))


def test_two_views_are_kept_apart(ledger):
    share = (Gaussian(3.0),)
    ledger.reserve(charge(colluder_events=share), CEILING)
    ledger.reserve(charge(run="local"), CEILING)
    assert ledger.events("") == [ROUND, ROUND]
    assert ledger.events("", "colluders") == [Gaussian(3.0), ROUND]
    report = ledger.verify().accounts[0]
    assert report.spent_against_colluders.value > report.spent.value


def test_the_same_round_again_is_paid_again(ledger):
    first, second = (ledger.reserve(charge(), CEILING) for _ in range(2))
    assert first != second
    assert ledger.spent("", 1e-5) == epsilon([ROUND, ROUND], 1e-5)


def test_evaluation_is_charged_beside_training(ledger):
    ledger.reserve(charge(), CEILING)
    ledger.reserve(charge(purpose="evaluation"), CEILING)
    assert len(ledger.events("")) == 2


def test_commit_needs_a_reservation_and_happens_once(ledger):
    number = ledger.reserve(charge(), CEILING)
    ledger.commit(number)
    for wrong in (number, number + 1, 1, 999):
        with pytest.raises(LedgerRefusal):
            ledger.commit(wrong)


def test_another_site_or_key_is_refused(ledger, path):
    with pytest.raises(LedgerRefusal, match="another site"):
        Ledger.open(path, "site-01", SIGNER)
    with pytest.raises(LedgerRefusal, match="another site key"):
        Ledger.open(path, "site-00", TestSigner(2))


def test_non_private_needs_an_unlimited_ceiling_and_ends_the_budget(ledger):
    open_end = Ceiling(float("inf"), 1e-5)
    with pytest.raises(BudgetError):
        ledger.reserve(Charge("r", 0, "", (NonPrivate(),)), CEILING)
    ledger.reserve(Charge("r", 0, "", (NonPrivate(),)), open_end)
    with pytest.raises(BudgetError):
        ledger.reserve(charge(), CEILING)
    ledger.verify()


def test_the_ceiling_for_colluders_holds_beside_the_other(path, ledger):
    ceiling = Ceiling(2.0, 1e-5, 6.0)

    def shared(number, noise=10.0):
        alone = (Gaussian(noise / 4),)
        return Charge("r", number, "", (Gaussian(noise),), alone)

    ledger.reserve(shared(0), ceiling)
    ledger.reserve(shared(1), ceiling)
    alone = ledger.spent("", 1e-5, "colluders").value
    with pytest.raises(BudgetError, match="for everyone else colluding; its ceiling is 6"):
        for number in range(2, 40):
            ledger.reserve(shared(number), ceiling)
    assert alone < ledger.spent("", 1e-5, "colluders").value <= 6.0
    assert ledger.spent("", 1e-5).value < 2.0, "the other ceiling was not the reason"
    with pytest.raises(BudgetError, match="for everyone else colluding"):
        ledger.check([shared(40)], ceiling)
    again = Ledger.open(path, "site-00", SIGNER)
    (report,) = again.verify().accounts
    assert report.ceiling == ceiling


def test_local_noise_counts_for_colluders_as_for_all(ledger):
    with pytest.raises(BudgetError, match="for everyone else"):
        ledger.reserve(Charge("r", 0, "", (Gaussian(1.0),)), Ceiling(10.0, 1e-5, 1.0))


def test_poisson_rounds_compose_as_one_run(ledger):
    ceiling = Ceiling(7.1, 1e-5)
    for number in range(4):
        events = (PoissonGaussian(0.1, 1.0, 25),)
        ledger.reserve(Charge("r", number, "", events), ceiling)
    assert ledger.spent("", 1e-5).value == pytest.approx(7.0466, abs=1e-3)
    with pytest.raises(BudgetError):
        ledger.reserve(Charge("r", 4, "", events), ceiling)


def test_threads_cannot_overspend(ledger):
    reserved = []

    def work():
        try:
            while True:
                reserved.append(ledger.reserve(charge(), CEILING))
        except BudgetError:
            return

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(reserved)) == len(reserved)
    assert ledger.spent("", 1e-5).value <= 2.0 < epsilon([ROUND] * (len(reserved) + 1), 1e-5).value


WORKER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_ledger import SIGNER, Ceiling, Charge, Gaussian, Ledger, Path
from fedllm.errors import BudgetError
ledger = Ledger.open(Path(sys.argv[1]), "site-00", SIGNER)
ceiling = Ceiling(2.0, 1e-5)
try:
    for number in range(1000):
        reserved = ledger.reserve(Charge(sys.argv[2], number, "", (Gaussian(10.0),)), ceiling)
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
    total = found.accounts[0].runs
    assert sum(run.committed for run in total) == len(reserved)
    assert found.accounts[0].spent.value <= 2.0
    assert epsilon([ROUND] * (len(reserved) + 1), 1e-5).value > 2.0


def reserve_until_killed(path, run, pipe):
    ledger = Ledger.open(path, "site-00", SIGNER)
    for number in range(1_000_000):
        reserved = ledger.reserve(charge("", 1, run, number), Ceiling(1e9, 1e-5))
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
        found = {(r.run, number) for number, r in ledger._chain.state.reservations.items()}
        assert reported <= found
    assert len(reported) >= kills, "the children were killed before they did anything"
    ledger.verify(ledger.head())
    assert len(ledger.events("")) >= len(reported)


def test_kill_never_loses_a_charge(path):
    kill_in_a_loop(path, 20)


@pytest.mark.slow
def test_two_hundred_kills_never_lose_a_charge(path):
    kill_in_a_loop(path, 200)


def test_crash_before_the_commit_of_the_file_charges_nothing(ledger, path, monkeypatch):
    head = ledger.head()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(chain_module.Transaction, "append", crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.reserve(charge(), CEILING)
    monkeypatch.undo()
    assert ledger.head() == head
    ledger.reserve(charge(), CEILING)
    ledger.verify()


def test_full_disk_refuses_and_keeps_what_was_there(ledger, path):
    import resource

    ledger.reserve(charge(), CEILING)
    head = ledger.head()
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, limits[1]))
    try:
        with pytest.raises(LedgerError, match="cannot be used"):
            for number in range(1, 100):
                ledger.reserve(charge(number=number, run="x" * 500), Ceiling(1e6, 1e-5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert ledger.verify(head).head.sequence >= head.sequence
    ledger.reserve(charge(number=100), Ceiling(1e6, 1e-5))


def test_read_only_folder_is_refused_but_can_be_audited():
    folder = Path(tempfile.mkdtemp(dir=tempfile.gettempdir()))
    try:
        path = folder / "site.sqlite"
        ledger = Ledger.open(path, "site-00", SIGNER)
        path.chmod(0o444)
        folder.chmod(0o555)
        as_root = os.geteuid() == 0
        if as_root:
            os.seteuid(65534)
        try:
            verify_ledger(path)
            with pytest.raises(LedgerError):
                ledger.reserve(charge(), CEILING)
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
    ledger.commit(ledger.reserve(charge("", 3), CEILING))
    out = tmp_path / "audit.jsonl"
    head = export_ledger(path, out)
    assert head == ledger.head()
    assert verify_ledger(out, SIGNER.public_bytes(), [head]) == ledger.verify()
    assert len(out.read_text().splitlines()) == head.sequence


def test_commands(ledger, path, tmp_path):
    import json

    from typer.testing import CliRunner

    from fedllm.commands.ledger import app

    ledger.commit(ledger.reserve(charge("", 3, run="[bold]odd"), CEILING))
    ledger.reserve(charge("", 3, number=1), CEILING)
    runner, head = CliRunner(), ledger.head()
    shown = runner.invoke(app, ["show", str(path)])
    assert shown.exit_code == 0
    assert "[bold]odd" in shown.output
    values = json.loads(runner.invoke(app, ["show", str(path), "--json"]).output)
    assert values["accounts"][0]["ceiling"] == {
        "epsilon": 2.0,
        "delta": 1e-5,
        "colluders_epsilon": None,
        "adaptive_epsilon": 6.0,
    }
    assert [run["reserved_only"] for run in values["accounts"][0]["runs"]] == [0, 1]
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
