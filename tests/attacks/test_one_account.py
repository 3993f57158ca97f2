"""Budgets that begin anew, or tell who is in a file, because records decided what is charged."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support.federation import build, records, small_config, write_jsonl

from fedllm.config import AllowSection, BudgetSection, DataSection, RunConfig, SitePolicy
from fedllm.errors import BudgetError
from fedllm.federation.site.site import Site
from fedllm_server.simulation import simulate

POLICY = SitePolicy(budget=BudgetSection(epsilon=3.0), allow=AllowSection(min_cohort=1))
ONCE = {"epsilon": 2.9}


@pytest.fixture
def one_file(tmp_path):
    """A file whose columns serve every task."""
    rows = [
        {**row.values, "prompt": row.values["text"], "response": row.values["label"], "who": str(i)}
        for i, row in enumerate(records(60))
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ask(tiny_checkpoint, one_file, tmp_path):
    """Simulate a run of one round over the sites' ledgers, which every run shares."""

    def run(name: str, task: str = "classification", policy: SitePolicy = POLICY, **data):
        config = small_config(
            tiny_checkpoint("bert" if task == "classification" else "gpt2"),
            task=task,
            data={"train": str(one_file), "sites": 2, **data},
            rounds={"count": 1},
            privacy=ONCE,
        )
        if task != "classification":
            config = config.model_copy(
                update={"data": config.data.model_copy(update={"labels": None})}
            )
        return simulate(config, tmp_path / name, policy=policy, ledgers=tmp_path / "home")

    return run


def test_one_file_run_as_three_tasks_has_one_ceiling(ask):
    ask("first")
    for task in ("causal", "instruction", "classification"):
        with pytest.raises(BudgetError, match="its ceiling is 3 "):
            ask(task, task)


def test_another_file_of_the_site_has_no_budget_of_its_own(ask, tmp_path):
    ask("first")
    other = write_jsonl(tmp_path / "other.jsonl", records(60, seed=7))
    with pytest.raises(BudgetError, match="its ceiling is 3 "):
        ask("second", train=str(other))


def test_persons_instead_of_records_are_no_new_budget(ask):
    ask("first")
    with pytest.raises(BudgetError, match="which bounds nothing for a person"):
        ask("second", unit="who")


@pytest.fixture
def config(tiny_checkpoint) -> RunConfig:
    return small_config(tiny_checkpoint("bert"), rounds={"count": 2}, privacy={"epsilon": 2.5})


def with_records(federation, rows, run="run-2"):
    """The same sites, keys and ledgers, after their files changed."""
    sites = {
        name: Site(
            identity=federation.identities[name],
            roster=federation.roster,
            policy=site._policy,
            files=site._files,
            model_path=federation.config.model.path,
            records=lambda task: rows,
            models=federation.models,
            full_errors=True,
        )
        for name, site in federation.sites.items()
    }
    terms = dataclasses.replace(federation.terms, run=run)
    return dataclasses.replace(federation, sites=sites, terms=terms)


SPENT = records(40, seed=0)
FILES = {
    "the same": SPENT,
    "a spent one among others": [SPENT[0], *records(39, seed=1)],
    "others": records(40, seed=2),
}


@pytest.mark.parametrize("allowed", [3.0, 6.0], ids=["refused", "allowed"])
def test_whether_a_run_is_refused_tells_nothing_of_who_is_in_the_file(config, tmp_path, allowed):
    """Somebody who may ask for runs would find out whether an exhausted person is still there."""
    policy = SitePolicy(budget=BudgetSection(epsilon=allowed), allow=AllowSection(min_cohort=1))
    said = set()
    for name, rows in FILES.items():
        (tmp_path / name).mkdir()
        federation = build(tmp_path / name, config, {"site-0": SPENT, "site-1": SPENT}, policy)
        federation.round(1, 1)
        federation.round(2, 2)
        again = with_records(federation, rows)
        try:
            again.round(1, 1)
            said.add("allowed")
        except BudgetError as error:
            said.add(f"{error.message} {error.remedy}")
    (answer,) = said
    assert (answer == "allowed") == (allowed == 6.0)


@pytest.mark.parametrize("rows", FILES)
def test_the_head_does_not_advance_because_records_changed(config, tmp_path, rows):
    """The coordinator hears the number of entries with each update."""
    policy = SitePolicy(budget=BudgetSection(epsilon=100.0), allow=AllowSection(min_cohort=1))
    federation = build(tmp_path, config, {"site-0": SPENT, "site-1": SPENT}, policy)
    before = federation.round(1, 1).heads
    again = with_records(federation, FILES[rows], run="run-1")
    after = again.round(2, 2).heads
    for name, head in before.items():
        assert after[name].sequence == head.sequence + 3, "settled, reserved, committed"


def test_an_account_of_its_own_needs_the_operators_word(ask, tmp_path, tiny_checkpoint):
    """Only a declaration makes budgets of their own, and what came before counts for each."""

    def policy(account: str) -> SitePolicy:
        return SitePolicy(
            budget=BudgetSection(epsilon=3.0, account=account),
            allow=AllowSection(min_cohort=1),
            data=DataSection(train="unused", unit="who"),
        )

    ask("oncology", policy=policy("oncology"), unit="who")
    with pytest.raises(BudgetError, match="its ceiling is 3 "):
        ask("again", "causal", policy=policy("oncology"), unit="who")
    ask("surgery", policy=policy("surgery"), unit="who")
    with pytest.raises(BudgetError, match="its ceiling is 3 "):
        ask("everything", unit="who")
