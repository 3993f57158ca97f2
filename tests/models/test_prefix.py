"""What is kept of the frozen part is the same in memory, on disk, or nowhere."""

import gc
import os
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from fedllm.mechanisms import LocalSettings
from fedllm.models import on_disk
from fedllm.models.on_disk import TensorFile, scratch_folder
from fedllm.models.prefix import PrefixCache
from fedllm.randomness import RandomStream
from fedllm.training.local import train_locally

CASES = [
    ("bert", "classification", {}, torch.float32),
    ("bert", "classification", {"lora": {"rank": 0, "last_layers": None}}, torch.float32),
    ("llama", "instruction", {}, torch.float32),
    ("llama", "instruction", {"model": {"precision": "bfloat16"}}, torch.bfloat16),
    ("gpt2", "causal", {"model": {"precision": "bfloat16"}}, torch.bfloat16),
]


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Let what is kept lie in a folder of the test's."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def cache_of(model, budget_bytes):
    return PrefixCache(model.module, True, model.module.one_vector, budget_bytes)


def free(monkeypatch, amount):
    monkeypatch.setattr(on_disk.shutil, "disk_usage", lambda _: type("Usage", (), {"free": amount}))


def unnamed_files():
    links = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {number for number, link in links.items() if "(deleted)" in link}


@pytest.mark.parametrize(("kind", "task", "sections", "dtype"), CASES)
def test_disk_memory_both_and_neither_give_the_same_bits(
    kind, task, sections, dtype, tiny_model, random_dataset, scratch, monkeypatch
):
    model, data = tiny_model(kind, task, **sections), random_dataset(40, task)
    indices = np.array([39, 0, 7, 7, 22, 13])
    batch = data.batch(indices)
    whole = cache_of(model, 1 << 30)
    expected = whole.attach(data, indices, batch)["states"]
    # Kept in the numbers in which the frozen part computes.
    assert expected.dtype == dtype
    drawn = np.unique(indices)
    rows = len(drawn) if model.module.one_vector else int(np.diff(data.offsets)[drawn].sum())
    assert whole.used_bytes == rows * 16 * dtype.itemsize
    assert whole.used_disk_bytes == 0
    for room in (0, whole.used_bytes // 2):
        cache = cache_of(model, room)
        for _ in range(2):
            assert torch.equal(cache.attach(data, indices, batch)["states"], expected)
        assert cache.used_bytes <= room
        # What does not fit into memory is on disk, and nothing twice.
        left = whole.used_bytes - cache.used_bytes
        assert left <= cache.used_disk_bytes < left + 16 * len(drawn)
        assert not list(scratch.iterdir()), "without a name"
    free(monkeypatch, 0)
    none = cache_of(model, 0)
    assert torch.equal(none.attach(data, indices, batch)["states"], expected)
    assert none.used_bytes == none.used_disk_bytes == 0


def test_only_what_is_drawn_is_computed_and_only_once(tiny_model, random_dataset, monkeypatch):
    model, data = tiny_model("llama", "instruction"), random_dataset(40, "instruction")
    model.prefix, computed, prefix = cache_of(model, 1 << 30), [], model.module.prefix

    def watched(batch):
        computed.append(batch["input_ids"].tolist())
        return prefix(batch)

    monkeypatch.setattr(model.module, "prefix", watched)
    for drawn in ([3, 17], [17, 20], [3, 17, 20]):
        indices = np.array(drawn)
        model.prefix.attach(data, indices, data.batch(indices))
    each = [data.batch(np.array([index]))["input_ids"].tolist() for index in (3, 17, 20)]
    assert computed == each


def test_the_file_is_gone_with_the_data_set(tiny_model, random_dataset):
    model, data = tiny_model(), random_dataset(9)
    gc.collect()
    before = unnamed_files()
    cache = cache_of(model, 0)
    cache.attach(data, np.arange(9), data.batch(np.arange(9)))
    (mine,) = unnamed_files() - before
    found = os.fstat(mine)
    assert stat.S_IMODE(found.st_mode) == 0o600
    assert found.st_nlink == 0
    del data
    gc.collect()
    assert cache.used_disk_bytes == 0
    # Files of data sets that other tests left for the collector may go with it.
    assert unnamed_files() <= before


def test_nothing_on_disk_can_be_read_without_the_process(scratch):
    file, values = TensorFile(scratch), torch.arange(1000, dtype=torch.float32).view(100, 10)
    for _ in range(2):
        file.add(values)
    raw = os.pread(file._file.fileno(), 10_000, 0)
    clear = values.numpy().tobytes()
    assert clear[:32] not in raw
    # The same numbers twice are not the same bytes twice.
    assert raw[:4000] != raw[4000:8000]
    other = TensorFile(scratch)
    other.add(values)
    assert os.pread(other._file.fileno(), 4000, 0) != raw[:4000]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("width", [1, 7, 16])
def test_any_rows_of_any_tensor_come_back(dtype, width, scratch):
    file, generator = TensorFile(scratch), torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, width, generator=generator).to(dtype) for size in (5, 1, 33)]
    places = [file.add(tensor) for tensor in tensors]
    for tensor, place in zip(tensors, places, strict=True):
        for start in range(len(tensor)):
            at = place + start * width * dtype.itemsize
            found = file.read(at, len(tensor) - start, width, dtype)
            assert torch.equal(found, tensor[start:])


def test_at_most_half_of_what_is_free_is_taken(scratch, monkeypatch):
    values = torch.zeros(100, 10)
    free(monkeypatch, 8000)
    file = TensorFile(scratch)
    file.add(values)
    with pytest.raises(OSError, match="too little room"):
        file.add(values)


@pytest.mark.parametrize("trouble", ["full", "half full", "no folder", "unreadable", "cut short"])
def test_a_private_step_is_the_same_whatever_the_disk_does(
    trouble, tiny_model, random_dataset, scratch, monkeypatch
):
    settings = LocalSettings(
        steps=2,
        sampling_rate=0.5,
        expected_batch_size=10.0,
        microbatch_size=4,
        optimizer="sgd",
        learning_rate=1.0,
        head_learning_rate=1.0,
        clipping_norm=1.0,
        noise_multiplier=1.0,
    )

    def update(room):
        model, data = tiny_model("llama", "instruction"), random_dataset(30, "instruction")
        model.prefix = cache_of(model, room)
        streams = RandomStream.seeded(1), RandomStream.seeded(2)
        return train_locally(model, data, settings, *streams).update, model.prefix.used_disk_bytes

    expected, _ = update(1 << 30)
    write, read, number = os.pwrite, os.preadv, []

    def pwrite(descriptor, data, place):
        number.append(place)
        if trouble == "full" or (trouble == "half full" and len(number) > 30):
            raise OSError(28, "No space left on device")
        # A write may take a part.
        return write(descriptor, data[: max(len(data) // 2, 1)], place)

    def preadv(descriptor, buffers, place):
        if trouble == "unreadable":
            raise OSError(5, "Input/output error")
        return read(descriptor, buffers, place) - (trouble == "cut short")

    monkeypatch.setattr(on_disk.os, "pwrite", pwrite)
    monkeypatch.setattr(on_disk.os, "preadv", preadv)
    if trouble == "no folder":
        monkeypatch.setenv("TMPDIR", str(scratch / "missing"))
    found, on_the_disk = update(0)
    np.testing.assert_array_equal(found, expected)
    assert bool(number) == (trouble != "no folder")
    assert (on_the_disk > 0) == (trouble not in ("full", "no folder"))


def test_large_files_do_not_go_where_memory_is(monkeypatch):
    assert scratch_folder() == Path(os.environ["TMPDIR"])
    monkeypatch.delenv("TMPDIR")
    assert scratch_folder() == Path("/var/tmp")
