"""Which device a setting names, what goes there, and what happens where its memory is too small."""

import gc
import weakref

import pytest
import torch
from support.devices import on_a_gpu

from fedllm.config import EngineSection, SiteModelSection, parse
from fedllm.errors import ConfigError, ShortOfMemoryError
from fedllm.models.device import CPU, Place, chosen_device, state_of_chance, with_room

GPU = torch.device("cuda", 0)


@pytest.fixture
def machine(monkeypatch):
    """Make this machine one with so many GPUs, as far as PyTorch tells."""

    def with_gpus(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"Example {number}")
        monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: None)
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")

    return with_gpus


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [
        (None, 2, CPU),
        ("cpu", 2, CPU),
        ("auto", 0, CPU),
        ("auto", 2, GPU),
        ("cuda", 1, GPU),
        ("cuda:1", 2, torch.device("cuda", 1)),
    ],
)
def test_a_setting_names_a_device(name, gpus, device, machine):
    machine(gpus)
    assert chosen_device(name) == device


@pytest.mark.parametrize(
    ("name", "gpus", "there", "remedy"),
    [
        ("cuda", 0, "built without GPUs|finds no GPU", "set it to 'cpu'"),
        ("cuda:0", 0, "built without GPUs|finds no GPU", "nvidia-smi"),
        ("cuda:1", 1, r"this machine has cuda:0 \(Example 0\)", "name one of these"),
    ],
)
def test_a_device_that_is_not_there_is_refused_with_what_there_is(
    name, gpus, there, remedy, machine
):
    machine(gpus)
    with pytest.raises(ConfigError, match=there) as caught:
        chosen_device(name, "model.device of site.toml")
    assert caught.value.message.startswith(f"model.device of site.toml = '{name}': ")
    assert remedy in caught.value.remedy


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", "meta", "CUDA"])
def test_other_names_are_refused_with_those_there_are(name):
    for section, more in ((EngineSection, {}), (SiteModelSection, {"path": "x"})):
        with pytest.raises(ConfigError, match="device") as caught:
            parse(section, {"device": name, **more}, "test")
        assert "'auto', 'cpu', 'cuda' or 'cuda:N'" in str(caught.value)


def test_numbers_beyond_a_table_break_off_before_they_reach_a_gpu():
    """There they would end the process's use of the GPU, and so tell of one record."""
    place = Place(torch.device("meta"), tokens=10, outputs=3)
    ids = torch.tensor([[1, 9]])
    good = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([2])}
    assert {value.device.type for value in place.moved(good).values()} == {"meta"}
    ignored = good | {"labels": torch.tensor([[-100, 2]])}
    assert place.moved(ignored)
    for wrong in (
        {"input_ids": torch.tensor([[1, 10]])},
        {"input_ids": torch.tensor([[-1, 1]])},
        {"labels": torch.tensor([3])},
        {"labels": torch.tensor([-1])},
    ):
        with pytest.raises(IndexError):
            place.moved(good | wrong)
    assert Place(CPU, 0, 0).moved(good) is good


def test_work_that_does_not_fit_is_done_once_more_when_all_else_is_given_back():
    left, seen = [], []

    def work():
        if not left:
            large = torch.ones(8)
            left.append(weakref.ref(large))
            raise torch.OutOfMemoryError
        gc.collect()
        # What the first attempt held is gone, or the second could fail for its sake.
        assert left[0]() is None
        return "done"

    assert with_room(CPU, work, lambda: seen.append("again")) == "done"
    assert seen == ["again"]


def test_work_that_never_fits_and_other_errors_are_told():
    calls, given_back = [], []

    def work(*errors):
        calls.append(errors)
        raise errors[(len(calls) - 1) % len(errors)]

    with pytest.raises(ShortOfMemoryError, match="the memory of this machine"):
        with_room(CPU, lambda: work(torch.OutOfMemoryError()), lambda: given_back.append(1))
    assert (len(calls), len(given_back)) == (2, 2)
    with pytest.raises(KeyError):
        with_room(CPU, lambda: work(KeyError()))
    assert len(calls) == 3
    # What it breaks off at the second time is the work's own.
    with pytest.raises(KeyError):
        with_room(CPU, lambda: work(KeyError(), MemoryError()))
    assert len(calls) == 5


@on_a_gpu
def test_what_a_gpu_draws_is_seen():
    before = state_of_chance(GPU)
    torch.rand(3, device=GPU)
    assert not torch.equal(before, state_of_chance(GPU))


@on_a_gpu
def test_a_gpu_is_given_its_memory_back_between_two_attempts():
    torch.empty(1 << 28, dtype=torch.uint8, device=GPU)
    held, reserved = torch.cuda.memory_reserved(GPU), []

    def work():
        reserved.append(torch.cuda.memory_reserved(GPU))
        if len(reserved) == 1:
            raise torch.OutOfMemoryError
        return None

    with_room(GPU, work)
    assert reserved[1] < held
