"""Teaching that was broken off ends as if it had not been; what is not its own is refused."""

from __future__ import annotations

import pytest
import torch

from fedllm.compression.distilling import Distillation, distil, student_of
from fedllm.compression.linears import linears
from fedllm.compression.pruning import prune
from fedllm.compression.resuming import Unfinished, beside, fingerprint
from fedllm.compression.texts import endless
from fedllm.errors import CheckpointError, ConfigError
from fedllm.randomness import RandomStream

SETTINGS = Distillation(steps=9, learning_rate=3e-3)
TEXTS = [tuple(4 + (i * j) % 11 for j in range(1, 4 + i % 5)) for i in range(1, 8)]


class BrokenOffError(Exception):
    """As when a machine goes down."""


@pytest.fixture
def taught(tiny_model, tmp_path):
    """Teach a pruned student for so many steps; returns its numbers and the losses it heard."""
    teacher = tiny_model("bert").module

    def teach(name, until=9, asked="this", every_s=0.0):
        student = student_of(teacher, (0, 2))
        pruned = linears(student.backbone, ("encoder.layer",))
        prune(pruned, "share", 0.5)
        heard = []

        def told(step, loss):
            heard.append((step, loss))
            if step == until and until < SETTINGS.steps:
                raise BrokenOffError

        unfinished = Unfinished(beside(tmp_path / name), asked, every_s)
        stream = RandomStream.seeded(0, "distilling")
        batches = endless(TEXTS, 2, 0, stream)
        last = distil(teacher, student, (0, 2), batches, SETTINGS, told, pruned, unfinished)
        return dict(student.named_parameters()), heard, last

    return teach


def test_what_was_broken_off_ends_as_what_was_not(taught, tmp_path):
    right, all_heard, right_last = taught("whole")
    for until in (2, 7):
        with pytest.raises(BrokenOffError):
            taught("broken", until)
    found, heard, last = taught("broken")
    assert [step for step, _ in heard] == [8, 9]
    assert heard == all_heard[7:]
    assert last == right_last
    assert all(torch.equal(values, right[name]) for name, values in found.items())
    assert (tmp_path / ".broken.teaching").exists()


def test_a_loss_is_kept_as_often_as_was_said(taught, tmp_path):
    taught("rarely", every_s=60.0)
    assert list(tmp_path.glob(".rarely*")) == []


def test_another_teaching_is_not_gone_on_with(taught, tmp_path):
    with pytest.raises(BrokenOffError):
        taught("broken", 3)
    with pytest.raises(ConfigError, match="another teaching") as caught:
        taught("broken", asked="that")
    assert "remove the file" in caught.value.remedy


@pytest.mark.parametrize("damage", ["cut", "no file of ours"])
def test_a_damaged_file_is_told(taught, tmp_path, damage):
    with pytest.raises(BrokenOffError):
        taught("broken", 3)
    path = beside(tmp_path / "broken")
    path.write_bytes(path.read_bytes()[:-50] if damage == "cut" else b"{}")
    with pytest.raises(CheckpointError, match="is damaged"):
        taught("broken")


def test_a_fingerprint_tells_models_and_what_is_asked_apart(tiny_model):
    one = tiny_model("bert").module
    other = student_of(one, (0, 1, 2))
    same = fingerprint([one], {"steps": 3})
    assert fingerprint([other], {"steps": 3}) == same
    assert fingerprint([one], {"steps": 4}) != same
    with torch.no_grad():
        next(other.backbone.parameters())[0, 0] += 1
    assert fingerprint([other], {"steps": 3}) != same
