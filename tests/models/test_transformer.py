"""The frozen lower layers are skipped without changing a loss or a gradient."""

import numpy as np
import pytest
import torch

from fedllm.models.pieces import by_unit, by_width
from fedllm.models.prefix import PrefixCache
from fedllm.training.objectives import record_losses

CASES = [
    ("bert", "classification"),
    ("bert", "token_classification"),
    ("gpt2", "token_classification"),
    ("roberta", "classification"),
    ("llama", "classification"),
    ("gpt2", "classification"),
    ("llama", "instruction"),
    ("mistral", "causal"),
    ("qwen2", "causal"),
    ("gpt2", "causal"),
]


def losses_and_gradients(model, batch):
    losses = record_losses(model, batch)
    return losses.detach(), torch.autograd.grad(losses.sum(), model.trained)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_kept_states_give_the_same_losses_and_gradients(kind, task, tiny_model, random_dataset):
    model, data = tiny_model(kind, task), random_dataset(12, task)
    indices = np.array([7, 2, 2, 11, 0])
    batch = data.batch(indices)
    kept = model.prefix.attach(data, indices, batch)
    assert kept["states"].shape == (*batch["input_ids"].shape, 16)
    expected = losses_and_gradients(model, batch)
    # The states decide: with others in their place the loss must differ.
    other = {**kept, "states": kept["states"].flip(0)}
    assert not torch.allclose(record_losses(model, other), expected[0], atol=1e-3)
    found = losses_and_gradients(model, kept)
    torch.testing.assert_close(found[0], expected[0], atol=1e-4, rtol=1e-4)
    for one, other in zip(found[1], expected[1], strict=True):
        assert (one - other).norm() <= 2e-3 * other.norm()
        assert other.norm() > 1e-3
    # The stack is whole again afterwards.
    torch.testing.assert_close(record_losses(model, batch), expected[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_head_alone_keeps_one_vector_a_record(kind, tiny_model, random_dataset):
    model, data = tiny_model(kind, lora={"rank": 0, "last_layers": None}), random_dataset(9)
    indices = np.array([4, 8, 1])
    batch = data.batch(indices)
    kept = model.prefix.attach(data, indices, batch)
    assert kept["states"].shape == (3, 1, 16)
    torch.testing.assert_close(
        losses_and_gradients(model, kept),
        losses_and_gradients(model, batch),
        atol=1e-5,
        rtol=1e-4,
    )
    assert {s.group for s in model.manifest.segments} == {"head"}


def test_nothing_is_kept_when_all_layers_are_trained(tiny_model, random_dataset):
    model, data = tiny_model("bert", lora={"last_layers": None}), random_dataset(4)
    batch = data.batch(np.arange(4))
    assert model.prefix.attach(data, np.arange(4), batch) is batch


def test_memory_stays_below_the_budget(tiny_model, random_dataset):
    model, first, second = tiny_model("bert"), random_dataset(30), random_dataset(30, seed=1)
    indices = np.arange(3)
    need = int(first.offsets[3] * 16 * 4)
    cache = PrefixCache(model.module, worthwhile=True, pooled=False, budget_bytes=need + 100)
    assert "states" in cache.attach(first, indices, first.batch(indices))
    assert cache.used_bytes == need
    whole = PrefixCache(model.module, worthwhile=True, pooled=False)
    batch = second.batch(indices)
    again, kept = (each.attach(second, indices, batch)["states"] for each in (cache, whole))
    assert torch.equal(again, kept), "computed afresh, bit for bit the same"
    assert cache.used_bytes == need
    del first
    assert cache.used_bytes == 0


def test_kept_states_do_not_depend_on_the_batch_that_asked_first(tiny_model, random_dataset):
    data, indices = random_dataset(200), np.array([150, 3])
    one, two = tiny_model("bert"), tiny_model("bert")
    one.prefix.attach(data, np.array([9]), data.batch(np.array([9])))
    batch = data.batch(indices)
    first = one.prefix.attach(data, indices, batch)["states"]
    assert torch.equal(first, two.prefix.attach(data, indices, batch)["states"])


def test_pieces_hold_every_record_once_padded_by_its_own_length(random_dataset):
    data = random_dataset(23, "causal")
    batch = data.batch(np.arange(23))
    seen = []
    for places, piece in by_width(batch, 5):
        assert len(places) <= 5
        lengths = piece["attention_mask"].sum(1)
        widths = {int(-(-size // 8) * 8) for size in lengths.tolist()}
        assert widths == {piece["input_ids"].shape[1]} == {piece["labels"].shape[1]}
        for row, place in enumerate(places.tolist()):
            size = int(lengths[row])
            assert torch.equal(piece["input_ids"][row, :size], batch["input_ids"][place, :size])
            alone = data.batch(np.array([place]))
            assert torch.equal(piece["input_ids"][row], alone["input_ids"][0])
        seen += places.tolist()
    assert sorted(seen) == list(range(23))


def test_padding_changes_no_loss(tiny_model, random_dataset):
    for kind, task in CASES:
        model, data = tiny_model(kind, task), random_dataset(6, task)
        together = record_losses(model, data.batch(np.arange(6)))
        alone = [record_losses(model, data.batch(np.array([i])))[0] for i in range(6)]
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-5, rtol=1e-4)


def test_units_are_cut_apart_with_all_their_records(random_dataset):
    data = random_dataset(23, "causal")
    batch = data.batch(np.arange(23))
    units = np.array([i % 5 for i in range(20)] + [7, 7, 9])
    found = list(by_unit(batch, units, 3))
    assert len(found) == 7
    for unit, pieces in zip((0, 1, 2, 3, 4, 7, 9), found, strict=True):
        places = np.concatenate([places.numpy() for places, _ in pieces])
        np.testing.assert_array_equal(places, np.flatnonzero(units == unit))
        longest = int(batch["attention_mask"][torch.from_numpy(places)].sum(1).max())
        for part, piece in pieces:
            assert len(part) <= 3
            assert piece["input_ids"].shape == (len(part), 8 * -(-longest // 8))
            assert torch.equal(piece["input_ids"], batch["input_ids"][part, : 8 * -(-longest // 8)])
