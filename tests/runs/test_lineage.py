"""What a run goes back to: what all of it spent, and what of it may have seen held-out records."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedllm.config import RunConfig, parse
from fedllm.runs.lineage import Ancestor, ancestors, may_have_trained, spent_together
from fedllm.runs.summary import Summary

TWO = {"run": "two", "run_id": "b", "epsilon": 8.0, "delta": 1e-5, "unit": "record"}
ONE = {"run": "one", "run_id": "a", "epsilon": 3.0, "delta": 1e-5, "unit": "record"}
HELD = Ancestor(run="one", task="causal", unit="record", held_out=0.25)


def told(*chain, privacy=None):
    started = {"adapter": "0f" * 32, "run": "two", "epsilon": 8.0, "chain": list(chain)}
    privacy = {"promised": 8.0, "epsilon": 8.0, "unit": "record", **(privacy or {})}
    return Summary(run="three", started_from=started, privacy=privacy).describe(Path("three"))


def test_epsilons_of_the_whole_chain_add_up():
    assert spent_together(ancestors({"chain": [TWO, ONE]}), "record") == 11
    words = told(TWO, ONE)
    assert "goes back to one" in words
    assert "spent the epsilon of all" in words and "11" in words
    assert "the epsilon of both" not in words


@pytest.mark.parametrize("first", [{**ONE, "epsilon": None}, {}, {"run": ["no", "name"]}, None])
def test_one_link_without_a_bound_leaves_the_whole_without(first):
    assert spent_together(ancestors({"chain": [TWO, first]}), "record") is None
    words = told(TWO, first)
    assert "no epsilon bounds" in words
    assert "spent the epsilon of" not in words


def test_what_bounds_records_bounds_no_persons():
    chain = ancestors({"chain": [{**TWO, "unit": "person"}, ONE]})
    assert spent_together(chain, "record") == 11
    assert spent_together(chain, "person") is None
    assert spent_together(chain[:1], "person") == 8


def test_a_summary_of_before_names_the_nearest_alone():
    # What that one began with, nobody wrote down.
    assert ancestors({**TWO, "adapter": "0f", "head": True}) == (Ancestor(**TWO), Ancestor())
    assert ancestors({"adapter": "0f", "head": True}) == (Ancestor(),)
    assert ancestors({}) == ()
    assert ancestors({"chain": []}) == (Ancestor(),)


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({}, False),
        ({"held_out": 0.5}, False),
        ({"held_out": 0.1}, True),
        ({"held_out": 0.0}, True),
        ({"task": "classification"}, True),
        ({"unit": "person"}, True),
        ({"simulated": True}, True),
    ],
)
def test_only_the_same_records_held_out_are_new_to_an_earlier_run(change, seen):
    values = {"name": "x", "task": "causal", "model": {"path": "m"}, "data": {"train": "t"}}
    config = parse(RunConfig, values | {"evaluation": {"every": 1, "holdout": 0.25}}, "it")
    earlier = HELD.model_copy(update=change)
    assert may_have_trained((earlier,), config, simulated=False) == ((earlier,) if seen else ())
    # Its sites have keys of their own, which hold out other records.
    assert may_have_trained((HELD,), config, simulated=True) == (HELD,)
    assert may_have_trained((HELD, Ancestor()), config, simulated=False) == (Ancestor(),)
