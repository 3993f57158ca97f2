"""A site's work on a GPU, and on a device that is pretended: what leaves is what a CPU computes.

On the pretended device every operation sees whether its operands lie there. So nothing of a model
was left behind, every batch was moved and every result fetched; that a GPU's own kernels give these
numbers, only a machine that has one can tell, with the same tests.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from support.devices import DEVICES, ENGINE, models_on, on_a_gpu
from support.tiny_models import save_tiny

from fedllm.audit.attacks.canaries import CanaryDataset, Places, PlantedGradients, losses_of
from fedllm.errors import ShortOfMemoryError
from fedllm.mechanisms import LocalSettings
from fedllm.models.prefix import PrefixCache
from fedllm.models.start import take_over
from fedllm.personal.own_layer import fit_alone
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training import local
from fedllm.training.evaluate import evaluate, unit_scores
from fedllm.training.local import clipped_gradient_sum, train_locally
from fedllm.training.made_up import MadeUpTraining
from fedllm.training.objectives import record_losses

STEP = LocalSettings(1, 1.0, 4.0, 2, "sgd", 1.0, 1.0, clipping_norm=0.5, noise_multiplier=1.0)
on_devices = pytest.mark.parametrize("device", DEVICES)
slow = pytest.mark.slow
NAMES = {"model": {"head_start": "label_names", "feature_center": "label_names"}}
# What is trained, of which kind of model: the usual here, the rest with the slow tests.
CASES = [
    pytest.param("bert", "classification", NAMES, id="names"),
    *(
        pytest.param(kind, task, sections, marks=slow, id=f"{kind} {task} {n}")
        for n, (kind, task, sections) in enumerate(
            [
                ("llama", "instruction", {"lora": {"last_layers": 1}}),
                ("bert", "classification", {"lora": {"rank": 0}}),
                ("bert", "token_classification", {}),
                ("gpt2", "causal", {"lora": {"last_layers": None}}),
                ("bert", "classification", {"model": {"precision": "bfloat16"}}),
                *(
                    ("llama", "causal", {"lora": {"method": method, "last_layers": 1}})
                    for method in ("core", "ffa_orthonormal", "fedsvd", "bitfit", "layers")
                ),
            ]
        )
    ),
]


def streams():
    return RandomStream.seeded(0, "sampling"), RandomStream.seeded(0, "noise")


def work(model, data, settings=STEP):
    """Do everything that a site does with a model, and return all numbers that come of it."""
    MadeUpTraining().require(model, 16, rows_at_once=2)
    total, seen = clipped_gradient_sum(model, data, settings, streams()[0])
    assert not seen.broken_units
    assert seen.problem == ""
    result = train_locally(model, data, settings, *streams())
    assert not result.statistics.broken_units
    figures = evaluate(model, data)
    return {
        "sum": total,
        "update": result.update,
        "figures": np.array([figures[name] for name in sorted(figures)]),
        "scores": unit_scores(model, data),
    }


def agree(found, wanted, model):
    rough = next(model.module.backbone.parameters()).dtype == torch.bfloat16
    for name, values in wanted.items():
        size = np.abs(values).max()
        np.testing.assert_allclose(
            found[name], values, rtol=0, atol=(2e-2 if rough else 2e-4) * size, err_msg=name
        )


def everything_is_there(model):
    tensors = [*model.module.named_parameters(), *model.module.named_buffers()]
    assert tensors
    assert [name for name, tensor in tensors if tensor.device != model.device] == []
    assert model.device.type != "cpu"


@on_devices
@pytest.mark.parametrize(("kind", "task", "sections"), CASES)
def test_a_sites_work_is_what_a_processor_computes(
    device, kind, task, sections, tiny_model, random_dataset, tmp_path
):
    persons = [0, 0, 0, 1, 2, 3]
    here = tiny_model(kind, task, **sections)
    expected = work(here, random_dataset(6, task, persons=persons))
    with models_on(device):
        there = tiny_model(kind, task, **sections, engine=ENGINE)
        everything_is_there(there)
        agree(work(there, random_dataset(6, task, persons=persons)), expected, there)
        there.save_adapter(tmp_path / "adapter")
    # And back: what was trained there is loaded here, in the same bits.
    before, wanted = here.adapter(), there.adapter()
    here.set_adapter(np.zeros_like(before))
    here.load_adapter(tmp_path / "adapter")
    np.testing.assert_array_equal(here.adapter(), wanted)


@on_devices
@pytest.mark.parametrize("method", ["ffa", pytest.param("ffa_orthonormal", marks=slow)])
def test_what_every_party_computes_for_itself_has_the_same_bits(device, method, tiny_model):
    """A that is never sent must be one and the same at all sites, wherever they compute."""
    sections = {"lora": {"method": method, "last_layers": 1}, "trained": False}
    here = tiny_model("llama", "causal", **sections)
    with models_on(device):
        there = tiny_model("llama", "causal", **sections, engine=ENGINE)
        np.testing.assert_array_equal(there.values(there.tensors), here.values(here.tensors))
        assert there.fingerprint == here.fingerprint
        assert there.tensors == here.tensors


# Said of a device "meta" without numbers; the one that is pretended has some.
@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")
@on_devices
def test_answers_and_audits_go_there_too(device, tiny_model, random_dataset, tmp_path):
    def all_of(model):
        data = random_dataset(5, "instruction")
        coins = np.ones(len(data), dtype=bool)
        planted = PlantedGradients(model, Places([np.arange(len(data))]), coins, 2.0)
        with planted.listening():
            canaries = train_locally(
                model, CanaryDataset(data, coins), STEP, *streams(), planted
            ).update
        answering = task_of("instruction").answering()(model, 16)
        before = model.adapter()
        take_over(model, tmp_path)
        np.testing.assert_array_equal(model.adapter(), before)
        return {
            "losses": losses_of(model, data),
            "canaries": canaries,
            "answers": answering.losses([("lost card", "open"), ("pay fee", "close")]),
        }, answering.complete(["lost card", "pay"])

    lora = {"last_layers": 1}
    here = tiny_model("llama", "instruction", lora=lora)
    here.save_adapter(tmp_path)
    expected, replies = all_of(here)
    with models_on(device):
        there = tiny_model("llama", "instruction", lora=lora, engine=ENGINE)
        found, said = all_of(there)
        agree(found, expected, there)
        assert said == replies


@slow
@on_devices
def test_a_layer_of_the_sites_own_is_trained_there(device, tiny_model, random_dataset):
    here = fit_alone(tiny_model(), random_dataset(8)).change
    with models_on(device):
        there = fit_alone(tiny_model(engine=ENGINE), random_dataset(8)).change
    # Adam makes large steps of small differences.
    np.testing.assert_allclose(there, here, atol=2e-3)
    assert here.any()


@slow
@on_devices
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_encoder_decoders_go_there_too(device, kind, tmp_path, random_dataset):
    from fedllm.config import RunConfig, parse

    def load(engine):
        values = {
            "name": "tiny",
            "task": "instruction",
            "model": {"path": str(save_tiny(kind, tmp_path / kind)), "max_length": 16},
            "data": {"train": "unused.jsonl"},
            "lora": {"rank": 2, "last_layers": 1},
            "engine": engine,
        }
        model = task_of("instruction").load_model(parse(RunConfig, values, "test"))
        model.set_adapter(0.3 * RandomStream.seeded(3).normal(model.manifest.length))
        return model

    expected = work(load({}), random_dataset(4, "instruction"))
    with models_on(device):
        there = load(ENGINE)
        everything_is_there(there)
        agree(work(there, random_dataset(4, "instruction")), expected, there)


@on_devices
def test_what_is_kept_lies_in_the_machines_memory_and_is_what_is_computed_afresh(
    device, tiny_model, random_dataset
):
    with models_on(device):
        model = tiny_model("bert", lora={"last_layers": 1}, engine=ENGINE)
        data, rows = random_dataset(6), np.arange(6)
        batch = data.batch(rows)
        afresh = model.prefix.attach(data, rows, batch)["states"]
        (states,) = model.prefix._kept.values()
        assert {own.device.type for own in states._states.values()} == {"cpu"}
        in_memory = model.prefix.attach(data, rows, batch)["states"]
        disk = PrefixCache(model.module, True, False, budget_bytes=0, place=model._place)
        disk.attach(data, rows, batch)
        assert disk.used_disk_bytes > 0
        on_disk = disk.attach(data, rows, batch)["states"]
        assert afresh.device == in_memory.device == on_disk.device == model.device
        assert torch.equal(afresh, in_memory)
        assert torch.equal(afresh, on_disk)


def broken(monkeypatch, times, unit):
    """Let one unit's gradient find too little memory, so many times; returns how often it tried."""
    tried, right = [], local.per_sample_gradients

    def gradients(parameters, losses):
        found = right(parameters, losses)
        tried.append(len(tried))
        if unit <= len(tried) - 1 < unit + times:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return found

    monkeypatch.setattr(local, "per_sample_gradients", gradients)
    return tried


def test_a_unit_that_fits_at_the_second_attempt_counts_as_ever(
    tiny_model, random_dataset, monkeypatch
):
    model, data = tiny_model(), random_dataset(5)
    whole, seen = clipped_gradient_sum(model, data, STEP, streams()[0])
    tried = broken(monkeypatch, times=1, unit=2)
    total, again = clipped_gradient_sum(model, data, STEP, streams()[0])
    np.testing.assert_array_equal(total, whole)
    assert len(tried) == 6
    assert not again.broken_units
    assert (again.loss, again.records_seen) == (seen.loss, seen.records_seen)


def test_a_unit_that_never_fits_ends_the_step(tiny_model, random_dataset, monkeypatch):
    model, data = tiny_model(), random_dataset(5)
    start = model.adapter()
    with monkeypatch.context() as patch:
        tried = broken(patch, times=2, unit=2)
        with pytest.raises(ShortOfMemoryError):
            clipped_gradient_sum(model, data, STEP, streams()[0])
        assert len(tried) == 4
    with monkeypatch.context() as patch:
        broken(patch, times=100, unit=0)
        with pytest.raises(ShortOfMemoryError):
            train_locally(model, random_dataset(2), STEP, *streams())
    np.testing.assert_array_equal(model.adapter(), start)
    # And nothing is left of it.
    _, seen = clipped_gradient_sum(model, data, STEP, streams()[0])
    assert (seen.records_seen, seen.broken_units) == (5, {})


def test_a_frozen_part_that_fits_at_the_second_attempt_is_kept(tiny_model, random_dataset):
    model, data = tiny_model("bert", lora={"last_layers": 1}), random_dataset(4)
    right, calls = model.module.prefix, []

    def prefix(batch):
        calls.append(batch)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return right(batch)

    model.module.prefix = prefix
    states = model.prefix.attach(data, np.arange(4), data.batch(np.arange(4)))["states"]
    assert torch.isfinite(states).all()
    assert len(calls) == 5


def test_scores_that_fit_at_the_second_attempt_are_those_of_ever(
    tiny_model, random_dataset, monkeypatch
):
    model, data = tiny_model(), random_dataset(4)
    expected, task, calls = unit_scores(model, data), task_of(model.task), []
    right = type(task).scores

    def scores(self, *of):
        calls.append(of)
        if len(calls) == 2:
            raise torch.OutOfMemoryError
        return right(self, *of)

    monkeypatch.setattr(type(task), "scores", scores)
    np.testing.assert_array_equal(unit_scores(model, data), expected)


@on_devices
def test_a_gpu_too_small_for_the_longest_record_is_refused_before_any(
    device, tiny_model, monkeypatch
):
    with models_on(device):
        model, right = tiny_model(lora={"rank": 0}, engine=ENGINE), record_losses
        sizes = []

        def losses(model, batch):
            sizes.append(tuple(batch["input_ids"].shape))
            if batch["input_ids"].shape[1] == 24:
                raise torch.OutOfMemoryError
            return right(model, batch)

        monkeypatch.setattr("fedllm.training.made_up.record_losses", losses)
        with pytest.raises(ShortOfMemoryError, match=r"record\(s\) of model.max_length = 24"):
            MadeUpTraining().require(model, 24, rows_at_once=3)
        assert sizes[-2:] == [(3, 24)] * 2


@on_a_gpu
def test_a_unit_beyond_a_gpus_memory_ends_the_step(tiny_model, random_dataset):
    model, data = tiny_model(engine=ENGINE), random_dataset(3)
    free, _ = torch.cuda.mem_get_info(model.device)
    tried, right = [], local.per_sample_gradients

    def gradients(parameters, losses):
        tried.append(None)
        if len(tried) in (2, 3):
            torch.empty(2 * free, dtype=torch.uint8, device=model.device)
        return right(parameters, losses)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "per_sample_gradients", gradients)
        with pytest.raises(ShortOfMemoryError):
            clipped_gradient_sum(model, data, STEP, streams()[0])
    total, _ = clipped_gradient_sum(model, data, STEP, streams()[0])
    assert np.linalg.norm(total) > 0


def test_adapters_in_float32_lie_on_a_base_in_bfloat16(tiny_model):
    with models_on("pretended"):
        model = tiny_model("llama", "causal", model={"precision": "bfloat16"}, engine=ENGINE)
        adapter = get_peft_model_state_dict(model.peft)
        assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
        assert {tensor.device for tensor in adapter.values()} == {model.device}
