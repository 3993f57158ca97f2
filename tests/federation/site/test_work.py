"""What a site computes by an order, and with which adapter."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from support.federation import LABELS, small_config

from fedllm.adapters import adapter_of
from fedllm.config import DataSection, RunConfig
from fedllm.errors import TrainingError
from fedllm.federation.site import work as module
from fedllm.federation.site.work import SiteWork
from fedllm.tasks.cache import ModelCache


@pytest.fixture
def place(tiny_checkpoint):
    config = small_config(tiny_checkpoint("bert"), evaluation={"every": 1})
    model = ModelCache().get(config, LABELS)
    return SimpleNamespace(config=config, model=model, method=adapter_of(model))


def test_held_out_records_are_scored_by_the_adapter_of_the_order(place, monkeypatch):
    scored = []

    def scores(model, held_out, parts):
        assert parts is None
        scored.append((model.adapter().copy(), held_out))
        return np.ones((2, 3))

    monkeypatch.setattr(module, "scores_of_units", scores)
    monkeypatch.setattr(module, "noised_sum", lambda config, _, found, noise: found.sum(axis=0))
    order = SimpleNamespace(
        config=place.config,
        model=place.model,
        method=place.method,
        statement=SimpleNamespace(round=1, attempt=1),
        quantiser=SimpleNamespace(quantise=lambda noised, rounding: noised),
    )
    work = SiteWork("anne")
    for value in (0.25, -0.5):
        order.adapter = np.full(place.method.down.length, value, dtype=np.float32)
        assert work.evaluate(order, "held out").tolist() == [2.0, 2.0, 2.0]
        adapter, held_out = scored.pop()
        assert (adapter == np.float32(value)).all()
        assert held_out == "held out"


def test_an_adapter_from_which_nothing_is_learnt_is_refused_and_the_model_stays(place, monkeypatch):
    before, seen = place.model.adapter().copy(), []

    def require(self, model, max_length, **more):
        seen.append((model.adapter().copy(), max_length))
        raise TrainingError("no gradient", "another adapter")

    monkeypatch.setattr(module.MadeUpTraining, "require", require)
    adapter = np.full(place.method.down.length, 0.5, dtype=np.float32)
    with pytest.raises(TrainingError, match="no gradient"):
        SiteWork("anne").require_trainable(place.config, place.model, place.method, adapter)
    ((placed, max_length),) = seen
    assert (placed == adapter).all()
    assert max_length == place.config.model.max_length
    np.testing.assert_array_equal(place.model.adapter(), before)


@pytest.mark.parametrize(
    ("run", "own", "rows"),
    [
        ({}, None, 1),
        ({}, DataSection(train="t"), 1),
        ({}, DataSection(train="t", unit="person"), 8),
        ({"data": {"train": "t", "unit": "person"}}, None, 8),
        ({"privacy": {"epsilon": None}}, DataSection(train="t", unit="person"), 0),
    ],
)
def test_as_many_rows_are_tried_as_a_unit_of_the_sites_own_source_may_have(
    run, own, rows, place, tiny_checkpoint, monkeypatch
):
    """The run may name no persons: the site's source decides whose records are computed at once."""
    tried = []
    monkeypatch.setattr(
        module.MadeUpTraining, "require", lambda self, *_, **more: tried.append(more)
    )
    base = small_config(
        tiny_checkpoint("bert"), training={"microbatch_size": 8}, privacy={"epsilon": 2.0}
    )
    values = base.model_dump()
    for section, keys in run.items():
        values[section] |= keys
    config = RunConfig.model_validate(values)
    SiteWork("anne", own).require_trainable(config, place.model, place.method, place.method.start())
    assert [more["rows_at_once"] for more in tried] == [rows]
