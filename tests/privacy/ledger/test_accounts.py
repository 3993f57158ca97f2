"""One account for all of a site's records, and accounts that its operator declares apart."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.ledger import CEILING, SIGNER, charge_before, register

from fedllm.errors import BudgetError
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import Gaussian
from fedllm.privacy.ledger.audit import export_ledger, read_state, spending_of, verify_ledger
from fedllm.privacy.ledger.budget import Charge
from fedllm.privacy.ledger.ledger import Ledger

ACCOUNTS = ("", "oncology", "surgery")
ROUND = Gaussian(10.0)  # 25 of them fit under the ceiling


def charge(account: str, count: int, number: int = 0, run: str = "run") -> Charge:
    return Charge(run, number, account, (Gaussian(10.0, count),), unit="person")


def cost(rounds: int) -> float:
    return epsilon([ROUND] * rounds, CEILING.delta).value


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site-00.sqlite"


@pytest.fixture
def ledger(path):
    return Ledger.open(path, "site-00", SIGNER)


asked = st.lists(st.tuples(st.sampled_from(ACCOUNTS), st.integers(1, 15)), max_size=8)


@settings(max_examples=25, deadline=None)
@given(asked)
def test_nobody_is_ever_charged_beyond_the_ceiling(asked):
    """Whoever is in one declared account's sources, and in any that nobody declared."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "site.sqlite"
        ledger = Ledger.open(path, "site-00", SIGNER)
        spent = dict.fromkeys(ACCOUNTS, 0)

        def touched(account: str) -> int:
            return sum(spent.values()) if not account else spent[account] + spent[""]

        for number, (account, count) in enumerate(asked):
            head = ledger.head()
            fits = cost(touched(account) + count) <= CEILING.epsilon
            try:
                ledger.reserve(charge(account, count, number), CEILING)
            except BudgetError:
                assert not fits
                assert ledger.head() == head
            else:
                assert fits
                spent[account] += count
        for account in ACCOUNTS:
            events = ledger.events(account)
            assert sum(event.count for event in events) == touched(account)
        # Those in no declared account are charged no more than those in one.
        assert cost(max(map(touched, ACCOUNTS[1:]))) <= CEILING.epsilon
        reports = {one.account: one.spent.value for one in verify_ledger(path).accounts}
        charged = [account for account, count in spent.items() if count]
        assert reports == {
            account: epsilon(ledger.events(account), CEILING.delta).value
            for account in charged or [""]
        }


def test_a_declared_account_begins_with_all_that_was_charged_before_it(ledger):
    ledger.reserve(charge("", 20), CEILING)
    with pytest.raises(BudgetError):
        ledger.reserve(charge("oncology", 6), CEILING)
    ledger.reserve(charge("oncology", 5), CEILING)
    with pytest.raises(BudgetError):
        ledger.reserve(charge("", 1), CEILING)


def test_accounts_that_share_nobody_have_budgets_of_their_own(ledger, path):
    for account in ACCOUNTS[1:]:
        ledger.reserve(charge(account, 25), CEILING)
        with pytest.raises(BudgetError):
            ledger.reserve(charge(account, 1), CEILING)
    assert [one.account for one in ledger.verify().accounts] == ["oncology", "surgery"]
    with pytest.raises(BudgetError):
        ledger.reserve(charge("", 1), CEILING)


def test_a_run_that_is_checked_over_accounts_counts_what_they_share(ledger):
    planned = [charge("", 13, 0), charge("oncology", 12, 1)]
    ledger.check(planned, CEILING)
    with pytest.raises(BudgetError, match="rounds 0 to 2"):
        ledger.check([*planned, charge("", 1, 2)], CEILING)
    ledger.check([*planned, charge("surgery", 12, 2)][1:], CEILING)


def test_a_lost_ledger_is_carried_over_account_by_account(ledger, path, tmp_path):
    for account, count in (("", 2), ("oncology", 20), ("surgery", 10)):
        ledger.reserve(charge(account, count), CEILING)
    later = Ledger.open(tmp_path / "later.sqlite", "site-00", SIGNER)
    _, carried = spending_of(path)
    later.carry(carried)
    for account in ACCOUNTS:
        assert set(later.events(account)) == set(ledger.events(account))
    ledger.carry(carried)
    with pytest.raises(BudgetError):
        later.reserve(charge("oncology", 4, run="later"), CEILING)
    later.reserve(charge("surgery", 4, run="later"), CEILING)
    assert {one.account for one in verify_ledger(tmp_path / "later.sqlite").accounts} == {*ACCOUNTS}


class TestLedgersOfBefore:
    """They were charged by data set: one file read for three tasks had three budgets."""

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "before.sqlite"
        Ledger.open(path, "site-00", SIGNER)
        for number, records in enumerate(("a", "b", "c")):
            data_set = register(path, records)
            charge_before(path, data_set, (Gaussian(10.0, 8),), CEILING, number)
        return path

    def test_all_of_it_counts_for_the_account(self, ledger, path):
        assert cost(24) <= CEILING.epsilon < cost(26)
        assert len(ledger.events("")) == 3
        one = Charge("run", 9, "", (ROUND,))
        with pytest.raises(BudgetError):
            ledger.check([one, one], CEILING)
        ledger.reserve(one, CEILING)
        (report,) = ledger.verify().accounts
        assert report.spent.value == cost(25)
        assert ledger.verify().by_dataset == 3

    @pytest.mark.parametrize("account", ["oncology", "surgery"])
    def test_and_for_every_account_that_is_declared_later(self, ledger, account):
        with pytest.raises(BudgetError):
            ledger.reserve(Charge("run", 9, account, (Gaussian(10.0, 2),)), CEILING)
        ledger.reserve(Charge("run", 9, account, (ROUND,)), CEILING)

    def test_each_was_right_by_the_rule_of_its_time(self, path, tmp_path):
        more = register(path, "d")
        charge_before(path, more, (Gaussian(10.0, 20),), CEILING, 9)
        (report,) = verify_ledger(path).accounts
        assert report.spent.value == cost(44) > CEILING.epsilon
        export_ledger(path, tmp_path / "export.jsonl")
        assert verify_ledger(tmp_path / "export.jsonl") == verify_ledger(path)
        with pytest.raises(BudgetError):
            Ledger.open(path, "site-00", SIGNER).reserve(Charge("run", 10, "", (ROUND,)), CEILING)

    def test_a_new_ledger_carries_all_of_it(self, path, tmp_path):
        site, carried = spending_of(path)
        assert (site, [one.account for one in carried]) == ("site-00", [""])
        assert len(carried[0].events) == 3
        assert read_state(path).accounts() == [""]
