"""A machine's memory is full of what it keeps of records: that must not decide which others count.

Allocations fail here as under a limit of addresses, or where the system promises no more than it
has: with an error, after which the process goes on.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedllm.data import encode
from fedllm.data.records import Record, RowProblems
from fedllm.errors import ShortOfMemoryError
from fedllm.mechanisms import LocalSettings
from fedllm.models.kept_states import KeptStates, Room
from fedllm.models.on_disk import TensorFile
from fedllm.privacy import dpsgd
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training import local
from fedllm.training.evaluate import evaluate, scores_of_units
from fedllm.training.local import clipped_gradient_sum

SETTINGS = LocalSettings(1, 1.0, 12.0, 64, "sgd", 1.0, 1.0, 1.0, 1.0)
PLAIN = replace(SETTINGS, noise_multiplier=None)
# In the words of PyTorch's allocator; and as Python, its libraries and the system put it.
ERRORS = {
    "torch": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
    "python": MemoryError,
    "c++": lambda: RuntimeError("std::bad_alloc"),
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
}
on_errors = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


@pytest.fixture
def model(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tiny_model(lora={"last_layers": 1})


def full_at(model, most_bytes, error, monkeypatch, where):
    """Let the frozen part, or the trained one, find no memory while so much is kept."""

    def short(right):
        def work(*args):
            if model.prefix.used_bytes > most_bytes:
                raise error()
            return right(*args)

        return work

    if where == "frozen":
        monkeypatch.setattr(model.module, "prefix", short(model.module.prefix))
    else:
        monkeypatch.setattr(local, "per_sample_gradients", short(dpsgd.per_sample_gradients))
        monkeypatch.setattr(local, "plain_gradient", short(local.plain_gradient))
        task = type(task_of(model.task))
        monkeypatch.setattr(task, "scores", short(task.scores))


@on_errors
@pytest.mark.parametrize("where", ["frozen", "trained"])
def test_what_is_kept_of_some_records_decides_nothing_for_others(
    where, error, model, random_dataset, monkeypatch
):
    def all_of():
        # Nothing of it is kept yet.
        data = random_dataset(12)
        total, seen = clipped_gradient_sum(model, data, SETTINGS, RandomStream.seeded(3))
        plain = local._gradient_sum(
            model, data, np.arange(12), PLAIN, local.StepRecord(model.manifest)
        )
        scores = scores_of_units(model, random_dataset(12)).values
        return total, plain, scores, seen

    *expected, before = all_of()
    full_at(model, 2000, error, monkeypatch, where)
    *found, seen = all_of()
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert seen == before
    assert not seen.broken_units


@on_errors
def test_what_fits_alone_neither_ends_the_work_for_all(error, model, random_dataset, monkeypatch):
    """Whether such a record adds nothing, or those around it filled the memory, nobody can tell."""
    data, right = random_dataset(6), model.module.prefix

    def prefix(batch):
        if int(batch["input_ids"][0, 0]) == int(data.tokens[data.offsets[3]]):
            raise error()
        return right(batch)

    monkeypatch.setattr(model.module, "prefix", prefix)
    for work in (
        lambda: local._gradient_sum(
            model, data, np.arange(6), SETTINGS, local.StepRecord(model.manifest)
        ),
        lambda: scores_of_units(model, data),
        lambda: evaluate(model, data),
    ):
        with pytest.raises(ShortOfMemoryError) as caught:
            work()
        # No error of a library hangs on it, whose words or frames could hold a record.
        assert caught.value.__cause__ is caught.value.__context__ is None


class Unclonable(torch.Tensor):
    def clone(self, **_):
        raise ERRORS["torch"]()


def test_failing_to_keep_a_state_fails_no_record(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    states, room = torch.ones(3, 4), Room(1 << 20)
    kept = KeptStates(room)
    kept.add(0, states.as_subclass(Unclonable))
    assert kept.of(0) is None
    assert room.used_bytes == 0
    on_disk = KeptStates(Room(0))
    on_disk.add(1, states)
    for name in ("read", "add"):

        def fail(*_):
            raise MemoryError

        monkeypatch.setattr(TensorFile, name, fail)
    on_disk.add(2, states)
    assert on_disk.of(1) is on_disk.of(2) is None


def test_what_is_dropped_is_given_back_and_half_of_it_kept_from_then_on(model, random_dataset):
    data, rows = random_dataset(8), np.arange(8)
    expected = model.prefix.attach(data, rows, data.batch(rows))["states"]
    held = model.prefix.used_bytes
    model.prefix.drop()
    assert model.prefix.used_bytes == 0
    for _ in range(2):
        assert torch.equal(model.prefix.attach(data, rows, data.batch(rows))["states"], expected)
    assert 0 < model.prefix.used_bytes <= held // 2
    assert model.prefix.used_disk_bytes >= held - held // 2


def test_no_record_is_left_out_because_its_tokens_found_no_memory(model):
    class Encoder:
        def sequences(self, records):
            raise MemoryError

    records = [Record({"text": "card"}, None, None, "row 1")]
    with pytest.raises(MemoryError):
        encode._tokenised(records, Encoder(), RowProblems(), False)
