"""A student of fewer blocks comes nearer to its teacher; padding teaches nothing."""

from __future__ import annotations

import itertools

import pytest
import torch

from fedllm.compression.distilling import Distillation, _loss, distil, evenly, logits_of, student_of
from fedllm.errors import ConfigError, TrainingError


def test_students_begin_with_the_first_and_the_last_block():
    assert evenly(12, 0.5) == (0, 2, 4, 7, 9, 11)
    assert evenly(6, 0.5) == (0, 2, 5)
    assert evenly(3, 0.7) == (0, 2)
    for blocks, share in ((3, 0.3), (6, 1.0), (2, 0.5)):
        with pytest.raises(ConfigError, match="no student"):
            evenly(blocks, share)


def batches(texts, count=6):
    """Batches of two texts of unequal length."""
    made = []
    for short, long in zip(texts(count, 5, seed=1), texts(count, 9, seed=2), strict=True):
        ids = torch.zeros(2, 9, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, one in enumerate((short, long)):
            length = one["input_ids"].shape[1]
            ids[row, :length], mask[row, :length] = one["input_ids"][0], 1
        made.append({"input_ids": ids, "attention_mask": mask})
    return made


KINDS = [("bert", "classification"), ("bert", "token_classification"), ("llama", "causal")]


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_a_student_comes_nearer_to_its_teacher(tiny_model, texts, kind, task):
    teacher = tiny_model(kind, task).module
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    student = student_of(teacher, (0, 2))
    seen, heard = batches(texts), []

    def apart():
        with torch.no_grad():
            pairs = [(logits_of(teacher, b), logits_of(student, b)) for b in seen]
        return sum(float((a - b).norm()) for a, b in pairs)

    first = apart()
    settings = Distillation(steps=40, learning_rate=3e-3)
    last = distil(
        teacher, student, (0, 2), itertools.cycle(seen), settings, lambda *s: heard.append(s)
    )
    assert apart() < 0.7 * first
    assert [step for step, _ in heard] == list(range(1, 41))
    assert last < heard[0][1]
    assert len(student.stack.layers) == 2
    assert len(teacher.stack.layers) == 3
    for name, p in teacher.named_parameters():
        assert torch.equal(p, before[name]), name
    if task != "causal":
        # What is written as its head is the teacher's.
        for name, p in student.head.named_parameters():
            assert torch.equal(p, before[f"head.{name}"]), name
        words = student.backbone.get_input_embeddings().weight
        assert torch.equal(words, teacher.backbone.get_input_embeddings().weight)


def test_the_loss_is_soft_targets_and_the_states_that_the_next_block_would_read(tiny_model, texts):
    teacher = tiny_model("bert").module.eval()
    student = student_of(teacher, (0, 2)).eval()
    (batch,) = batches(texts, 1)
    mask = batch["attention_mask"].bool()

    def states(module):
        found, hooks = [], []
        for block in module.stack.layers:
            hooks.append(
                block.register_forward_hook(
                    lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out)
                )
            )
        logits = module(batch)
        for hook in hooks:
            hook.remove()
        return found, logits

    with torch.no_grad():
        (right, wanted), (own, given) = states(teacher), states(student)
    p, q = torch.softmax(wanted / 3, -1), torch.softmax(given / 3, -1)
    soft = 9 * (p * (p / q).log()).sum(-1).mean()
    # Block 0 stands for blocks 0 and 1, block 2 for itself.
    apart = [
        (2 - 2 * torch.cosine_similarity(a[mask], b[mask], dim=-1)).mean()
        for a, b in ((own[0], right[1]), (own[1], right[2]))
    ]
    settings = Distillation(steps=1, temperature=3.0, hidden_weight=0.5)
    found = _loss(teacher, student, (0, 2), batch, settings)
    torch.testing.assert_close(found, soft + 0.5 * (apart[0] + apart[1]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("kind", "task"), KINDS)
def test_what_stands_in_padding_changes_nothing(tiny_model, texts, kind, task):
    teacher = tiny_model(kind, task).module.eval()
    student = student_of(teacher, (0, 2)).eval()
    (batch,) = batches(texts, 1)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][0, 5:] = 7
    settings = Distillation(steps=1)
    losses = [_loss(teacher, student, (0, 2), b, settings) for b in (batch, other)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_no_number_stops(tiny_model, texts):
    teacher = tiny_model("bert").module
    student = student_of(teacher, (0, 2))
    student.head.weight.data[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="step 1"):
        distil(teacher, student, (0, 2), iter(batches(texts)), Distillation(2), lambda *s: None)
