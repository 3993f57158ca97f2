"""The budget as a site's people see it: the ledger's own figures and no others."""

from __future__ import annotations

import math

import pytest
from support.overview import CEILING, ROUND, Site

from fedllm.config.site_policy import BudgetSection
from fedllm.overview import budget
from fedllm.overview.budget import BudgetReader, _spread
from fedllm.privacy.accounting.accountants import epsilon, upper_bound
from fedllm.privacy.accounting.events import Gaussian, NonPrivate, fold
from fedllm.privacy.ledger.audit import read_state, verify_ledger
from fedllm.privacy.ledger.budget import Ceiling, Charge
from fedllm.privacy.ledger.entries import Head, NoLedgerError, TamperedError
from fedllm.privacy.ledger.ledger import Ledger

SECTION = BudgetSection(epsilon=8.0)


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def reader(site, **more):
    return BudgetReader(site.ledger, site.look().kit.public_key, **more)


def test_what_is_spent_is_what_the_ledger_says(site):
    site.charge(range(1, 6))
    site.charge([6], released=False)
    site.charge([6], event=Gaussian(9.0), purpose="evaluation")
    found = reader(site).read(SECTION)
    (account,) = verify_ledger(site.ledger, policy=CEILING).accounts
    assert found.spent == account.spent.value
    assert found.colluders == account.spent_against_colluders.value
    assert found.left == 8.0 - found.spent
    released = epsilon([ROUND] * 5 + [Gaussian(9.0)], 1e-5).value
    assert found.released == released
    assert found.reserved == found.spent - released > 0
    assert found.open == 1
    assert found.head == read_state(site.ledger).head


def test_each_charge_has_what_was_spent_with_it(site):
    site.charge(range(1, 5))
    site.charge([5], released=False)
    found = reader(site).read(SECTION).charges
    assert [one.round for one in found] == [1, 2, 3, 4, 5]
    assert [one.released for one in found] == [True] * 4 + [False]
    for count, one in enumerate(found, 1):
        assert one.spent == upper_bound(fold([ROUND] * count), 1e-5)
        assert one.when[:2] == "20"
        assert (one.run, one.name, one.purpose) == ("run-1", "ward", "training")


def test_the_policys_ceiling_counts_and_not_that_of_the_last_charge(site):
    site.charge([1])
    found = reader(site).read(BudgetSection(epsilon=3.0, delta=1e-6, colluders_epsilon=9.0))
    assert (found.ceiling.epsilon, found.ceiling.delta) == (3.0, 1e-6)
    assert found.ceiling.colluders_epsilon == 9.0
    assert found.spent == epsilon([ROUND], 1e-6).value
    assert found.left == 3.0 - found.spent


def test_a_ceiling_below_what_is_spent_leaves_nothing(site):
    site.charge(range(1, 6))
    assert reader(site).read(BudgetSection(epsilon=0.1)).left == 0.0


def test_use_without_privacy_is_spent_without_bound(site):
    site.charge([1], released=False)
    opened = Ledger.open(site.ledger, "anne", site._identity)
    opened.commit(opened.reserve(Charge("x", 1, "", (NonPrivate(),)), Ceiling(math.inf, 1e-5)))
    found = reader(site).read(SECTION)
    assert math.isinf(found.spent)
    assert (found.left, found.reserved) == (0.0, 0.0)


def test_a_ledger_that_does_not_hold_gives_no_figure(site):
    site.charge(range(1, 4))
    with pytest.raises(TamperedError, match="anchored but missing"):
        reader(site).read(SECTION, Head(99, "0" * 64))
    with pytest.raises(TamperedError, match="no entry is signed with the key"):
        BudgetReader(site.ledger, bytes(32)).read(SECTION)
    site.ledger.unlink()
    with pytest.raises(NoLedgerError):
        reader(site).read(SECTION)


def test_of_many_charges_a_look_works_out_as_many_as_there_is_time_for(site):
    site.charge(range(1, 10))
    clock = iter(float(second) for second in range(1000))
    slow = reader(site, patience_s=2.0, clock=lambda: next(clock))
    first = slow.read(SECTION).charges
    known = [one.spent is not None for one in first]
    assert known[-1]
    assert not all(known)
    while not all(known):
        before, known = sum(known), [one.spent is not None for one in slow.read(SECTION).charges]
        assert sum(known) > before, "a later look goes on"


def test_a_ledger_is_read_again_only_where_it_changed(site, monkeypatch):
    site.charge(range(1, 4))
    found, read = reader(site), []
    real = budget.read_state

    def noted(*arguments):
        read.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(budget, "read_state", noted)
    first = found.read(SECTION)
    assert found.read(SECTION) == first
    assert len(read) == 1
    found.read(BudgetSection(epsilon=7.0))
    found.read(SECTION, first.head)
    site.charge([4])
    assert found.read(SECTION).charges[-1].round == 4
    assert len(read) == 4
    # What was in order once says nothing of what the file is now.
    content = site.ledger.read_bytes()
    site.ledger.write_bytes(content.replace(b'"round":2', b'"round":7'))
    for _ in range(2):
        with pytest.raises(TamperedError):
            found.read(SECTION)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 33, 34, 1000])
def test_a_row_is_looked_at_from_its_ends_inward(count):
    places = list(_spread(count))
    assert len(places) == len(set(places)) == min(count, 33)
    assert all(0 <= place < count for place in places)
    if count > 1:
        assert places[:2] == [count - 1, 0]
