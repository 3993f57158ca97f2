"""An adapter that travels with the one that its run started from."""

from __future__ import annotations

import numpy as np
import pytest
from support.federation import small_config

from fedllm.adapters import adapter_of, sent_in_turn
from fedllm.adapters.referring import ReferringAdapter
from fedllm.federation.protocol.terms import shared_config
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of


def model_of(tiny_checkpoint, method, start="earlier"):
    config = small_config(
        tiny_checkpoint("llama"),
        task="preference",
        model={"start": start},
        lora={"rank": 2, "method": method},
        data={"labels": None},
    )
    # As a site gets it, which knows that there is a start and not where.
    return task_of(config).load_model(
        shared_config(config).model_copy(update={"model": config.model})
    )


@pytest.mark.parametrize("method", ["lora", "ffa", "rolora", "fedsvd", "core", "bitfit"])
def test_both_halves_arrive_and_one_of_them_moves(method, tiny_checkpoint):
    model = model_of(tiny_checkpoint, method)
    found = adapter_of(model, 1)
    assert isinstance(found, ReferringAdapter)
    own = found.own.length
    assert found.down.length == 2 * own == len(found.start())
    assert found.up == sent_in_turn(model)[0]
    stream = RandomStream.seeded(1)
    now, first = (stream.normal(own).astype(np.float32) for _ in range(2))
    found.place(np.concatenate([now, first]))
    np.testing.assert_array_equal(found.held(), np.concatenate([now, first]))
    places = model.tensors.places(found.own)
    np.testing.assert_array_equal(model.values(model.tensors)[places], now)
    np.testing.assert_array_equal(model.reference.values[places], first)
    mean = stream.normal(found.up.length)
    moved = found.next(found.held(), mean, lambda start, change: (start + change).astype("f4"))
    np.testing.assert_array_equal(moved[own:], first)
    assert np.any(moved[:own] != now)
    moments = found.direction(mean, found.held(), moved)
    assert moments.shape == mean.shape
    assert found.squares(np.abs(mean), found.held(), moved).shape == mean.shape


def test_nothing_is_sent_twice_without_need(tiny_checkpoint):
    plain = adapter_of(model_of(tiny_checkpoint, "lora", None))
    assert not isinstance(plain, ReferringAdapter)
    assert plain.own == plain.down
    config = small_config(
        tiny_checkpoint("llama"), task="instruction", data={"labels": None}, model={"start": "x"}
    )
    assert shared_config(config).model.start is None
    assert not config.refers_to_start
