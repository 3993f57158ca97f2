"""The head on each token: gradients against a loop in float64, frozen states, saved folders."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from fedllm.errors import CheckpointError
from fedllm.models.heads import TokenHead
from fedllm.models.pieces import by_unit
from fedllm.models.shared import load_shared_model
from fedllm.models.token_head import TokenClassifier
from fedllm.privacy.dpsgd import added_up, clipped, per_sample_gradients, per_sample_hooks
from fedllm.training.objectives import record_losses

TASK = "token_classification"
RANKS = {2: {"rank": 2, "last_layers": 2}, 0: {"rank": 0, "last_layers": None}}
kinds = pytest.mark.parametrize("kind", ["bert", "roberta", "llama", "gpt2"])
ranks = pytest.mark.parametrize("rank", RANKS)


def in_float64(model, data):
    """Each record's gradient by itself (N, P), without padding, hooks or kept states."""
    module = copy.deepcopy(model.module).double()
    names = [segment.name for segment in model.manifest.segments]
    found = []
    for index in range(len(data)):
        size = int(data.offsets[index + 1] - data.offsets[index])
        batch = {key: value[:, :size] for key, value in data.batch(np.array([index])).items()}
        (logits,), (tags,) = module(batch), batch["labels"]
        counted = [place for place, tag in enumerate(tags.tolist()) if tag != -100]
        each = [torch.logsumexp(logits[i], 0) - logits[i, tags[i]] for i in counted]
        loss = torch.stack(each).mean() if each else logits.sum() * 0
        parameters = dict(module.named_parameters())
        parts = torch.autograd.grad(loss, [parameters[name] for name in names])
        found.append(torch.cat([part.reshape(-1) for part in parts]).numpy())
    return np.stack(found)


@kinds
@ranks
@pytest.mark.parametrize("kept", [False, True])
def test_per_sample_gradients_equal_a_loop_in_float64(kind, rank, kept, tiny_model, random_dataset):
    model, data = tiny_model(kind, TASK, lora=RANKS[rank]), random_dataset(7, TASK)
    data.tags[data.offsets[3] : data.offsets[4]] = -100  # nothing counts in this record
    lengths = np.diff(data.offsets)
    assert len(set(lengths.tolist())) > 2, "records of different lengths, so with padding"
    wanted = in_float64(model, data)
    indices = np.arange(7)
    batch = data.batch(indices)
    if kept:
        batch = model.prefix.attach(data, indices, batch)
        assert batch["states"].shape == (*batch["input_ids"].shape, 16)
    with per_sample_hooks(model.module, model.row_layers):
        gradients = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
    found = torch.cat([g.flatten(1) for g in gradients], dim=1).double().numpy()
    assert not wanted[3].any()
    assert not found[3].any()
    for row in (0, 1, 2, 4, 5, 6):
        size = np.linalg.norm(wanted[row])
        assert size > 1e-2
        assert np.linalg.norm(found[row] - wanted[row]) <= 1e-4 * size


@ranks
def test_a_unit_is_clipped_as_the_sum_of_its_records(rank, tiny_model, random_dataset):
    model, data = tiny_model("bert", TASK, lora=RANKS[rank]), random_dataset(5, TASK)
    wanted = in_float64(model, data)[[0, 2, 3]].sum(0)
    norm = np.linalg.norm(wanted) / 3
    indices = np.array([0, 2, 3])
    (pieces,) = by_unit(data.batch(indices), np.zeros(3, dtype=np.int64), 2)
    total = np.zeros(model.manifest.length)
    with per_sample_hooks(model.module, model.row_layers):
        for places, piece in pieces:
            attached = model.prefix.attach(data, indices[places.numpy()], piece)
            total += added_up(
                per_sample_gradients(model.trained, lambda a=attached: record_losses(model, a))
            )
    found = clipped(total, norm)
    assert np.linalg.norm(found.values) == pytest.approx(norm)
    np.testing.assert_allclose(found.values, wanted / 3, atol=1e-4 * norm)


def test_padding_and_what_has_no_tag_changes_no_loss(tiny_model, random_dataset):
    model, data = tiny_model("bert", TASK), random_dataset(6, TASK)
    batch = data.batch(np.arange(6))
    before = record_losses(model, batch)
    ignored = batch["labels"] == -100
    logits = model.module(batch)
    logits[ignored] += 99.0
    model.module.forward = lambda batch: logits
    torch.testing.assert_close(record_losses(model, batch), before)


def test_states_of_tokens_are_kept_one_by_one_with_the_whole_base_frozen(
    tiny_model, random_dataset
):
    model, data = tiny_model("bert", TASK, lora=RANKS[0]), random_dataset(9, TASK)
    indices = np.array([4, 8, 1])
    kept = model.prefix.attach(data, indices, data.batch(indices))
    assert kept["states"].shape == (*kept["input_ids"].shape, 16)
    assert not kept["states"].requires_grad
    assert {segment.group for segment in model.manifest.segments} == {"head"}
    # Each token's own: what a text classifier keeps would be one vector a record.
    other = tiny_model("bert", lora=RANKS[0])
    assert other.prefix.attach(data, indices, data.batch(indices))["states"].shape == (3, 1, 16)


def test_an_encoder_sees_both_sides_of_a_token_and_a_decoder_the_left(tiny_model, random_dataset):
    for kind, sees in (("bert", True), ("gpt2", False)):
        model, data = tiny_model(kind, TASK), random_dataset(1, TASK)
        batch = data.batch(np.arange(1))
        before = model.module(batch)[0, 0]
        batch["input_ids"][0, 2] = 4 + (batch["input_ids"][0, 2] - 3) % 12
        assert torch.allclose(model.module(batch)[0, 0], before) is not sees


def test_states_have_the_length_that_was_asked_for(tiny_model, random_dataset):
    for scale in (0.0, 3.0):
        model = tiny_model("bert", TASK, model={"feature_scale": scale})
        seen = []
        model.module.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))  # noqa: B023
        batch = random_dataset(3, TASK).batch(np.arange(3))
        model.module(batch)
        lengths = seen[0].norm(dim=-1)
        assert bool((lengths - 3.0).abs().max() < 1e-4) is (scale == 3.0)


@ranks
def test_saved_adapters_load_again_and_say_how_tags_are_meant(rank, tiny_model, tmp_path):
    model = tiny_model("bert", TASK, lora=RANKS[rank])
    model.save_adapter(tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter/shared_model.json").read_text())
    assert about["task"] == TASK
    assert about["tagging"] == "BIO"
    assert about["labels"] == ["one", "two", "three"]
    fresh = tiny_model("bert", TASK, lora=RANKS[rank], trained=False)
    fresh.load_adapter(tmp_path / "adapter")
    assert np.array_equal(fresh.adapter(), model.adapter())
    assert model.module.head.weight.shape == (7, 16)
    assert model.module.head.weight.dtype == torch.float32
    (tmp_path / "adapter/shared_model.json").write_text(json.dumps(about | {"tagging": "BILOU"}))
    with pytest.raises(CheckpointError, match="tagging differs"):
        fresh.load_adapter(tmp_path / "adapter")


def test_another_kind_of_head_is_another_adapter(tiny_model, tmp_path):
    tiny_model("bert", TASK).save_adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="task differs"):
        tiny_model("bert").load_adapter(tmp_path / "adapter")


def test_one_label_is_enough_and_the_head_starts_at_zero(tiny_checkpoint):
    from fedllm.config import RunConfig, parse

    values = {"name": "x", "task": TASK, "data": {"train": "t"}}
    values["model"] = {"path": str(tiny_checkpoint("bert"))}
    model = load_shared_model(parse(RunConfig, values, "test"), TokenHead(("NAME",), "BIO", 3))
    assert isinstance(model.module, TokenClassifier)
    assert isinstance(model.module.head, nn.Linear)
    assert not model.module.head.weight.any()
    assert not model.row_layers
