"""What is said, before a run of a simulation, of what its sites have spent already."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from support.federation import config_values

from fedllm.config import RunConfig, SitePolicy, parse
from fedllm.errors import FedllmError
from fedllm_server import spending

NEW = "the ledgers in {home} know of no earlier spending of these sites; "


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Return what is said of sites that spent so much; None for a ledger that does not hold."""

    def tell(spent: dict[str, float | None], done: int | None = None, epsilon=4.0) -> str:
        for name in spent:
            (tmp_path / name).touch()
        source = SimpleNamespace(
            home=tmp_path, files=lambda name: SimpleNamespace(ledger=tmp_path / name), keys=str
        )

        def account(files, identity, policy) -> SimpleNamespace:
            def found() -> float:
                value = spent[files.ledger.name]
                if value is None:
                    raise FedllmError("damaged")
                return value

            return SimpleNamespace(spent=found)

        monkeypatch.setattr(spending, "SiteAccount", account)
        monkeypatch.setattr(spending, "Identity", SimpleNamespace(load=lambda name, keys: name))
        config = parse(
            RunConfig, config_values("base", privacy={"epsilon": epsilon}, rounds={"count": 2}), "t"
        )
        roster = SimpleNamespace(shown=lambda name: f"Sankt {name}")
        state = None if done is None else SimpleNamespace(round=done)
        sites = ("anne", "bob", "carl")
        return spending.spent_before(source, sites, SitePolicy(), roster, config, state)

    return tell


@pytest.mark.parametrize("spent", [{}, {"anne": 0.0, "bob": 0.0}, {"anne": None}], ids=str)
def test_where_nothing_was_spent_the_sites_are_new(told, tmp_path, spent):
    assert told(spent).startswith(NEW.format(home=tmp_path))


def test_the_site_that_spent_most_is_named_with_the_ceiling(told, tmp_path):
    budget = SitePolicy().budget
    assert told({"anne": 1.0, "bob": 3.0, "carl": 2.0}) == (
        f"already spent by these sites, over all runs in the ledgers of {tmp_path}: epsilon 3 "
        f"of a ceiling of {budget.epsilon:g} at delta {budget.delta:g} "
        "(the most of 3 sites: Sankt bob)"
    )
    assert "epsilon 2 of a ceiling" in told({"anne": None, "bob": 0.0, "carl": 2.0})


def test_a_run_without_privacy_has_no_ceiling(told):
    assert "epsilon 3 at delta" in told({"anne": 3.0}, epsilon=None)


@pytest.mark.parametrize("spent", [0.0, 1.0])
def test_where_a_run_goes_on_is_told_first(told, spent):
    assert told({"anne": spent}, 0).startswith("going on with round 1 of 2; ")
    assert told({"anne": spent}, 1).startswith("going on with round 2 of 2; ")
    assert told({"anne": spent}, 2).startswith("all 2 rounds are done, ")
