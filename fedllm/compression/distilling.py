"""Teach a model of half the blocks to answer as the whole one does, on public texts.

The student begins as some of the teacher's own blocks, which matters most; it then learns the
teacher's soft targets at a temperature (Hinton et al. 2015), and each of its blocks to give what
the teacher's blocks up to the next one that it has give (Sun et al. 2019). Teacher and texts are
public or released, so nothing is charged. Private records belong into a federated run with the
student as its base model, where they are noised and charged.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, normalize

from fedllm.compression.linears import Batch, Linear
from fedllm.compression.pruning import zeros_kept
from fedllm.compression.removing import keep_blocks
from fedllm.compression.resuming import Unfinished
from fedllm.errors import ConfigError, TrainingError
from fedllm.models.language_model import LanguageModel
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import TextClassifier

Module = TextClassifier | TokenClassifier | LanguageModel


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student is taught.

    Attributes
    ----------
    steps : int
        At least 1.
    learning_rate : float
        Of AdamW, at most: it rises over the first tenth of the steps and falls to zero.
    temperature : float
        That both models' logits are divided by.
    hidden_weight : float
        Of the states' part of the loss; 0 leaves it out.
    """

    steps: int
    learning_rate: float = 1e-4
    temperature: float = 2.0
    hidden_weight: float = 1.0

    @property
    def rise(self) -> int:
        """A tenth of the steps."""
        return max(1, self.steps // 10)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, the first of which is 0."""
        falls = (self.steps - step) / (self.steps - self.rise + 1)
        return self.learning_rate * min((step + 1) / self.rise, falls)


def evenly(blocks: int, share: float) -> tuple[int, ...]:
    """Return which of a teacher's blocks a student begins with, the first and the last among them.

    Parameters
    ----------
    blocks : int
        Of the teacher.
    share : float
        That the student has, above 0 and below 1; two blocks at least.

    Raises
    ------
    ConfigError
        If nothing would be left out, or not even two blocks are left.
    """
    left = round(share * blocks)
    if not 2 <= left < blocks:
        raise ConfigError(
            f"a share of {share:g} of {blocks} blocks is no student", "give one from two blocks on"
        )
    return tuple(round(place * (blocks - 1) / (left - 1)) for place in range(left))


def student_of(teacher: Module, kept: Sequence[int]) -> Module:
    """Return a copy of a teacher that has some of its blocks, trainable as `trainable` says."""
    student = trainable(teacher)
    keep_blocks(student.stack.stack, student.stack.name, kept)
    return student


def trainable(module: Module) -> Module:
    """Return a copy of a model, all of it trainable but a head of labels and the table of words.

    Words that no text has would stay behind the others; without labels, the table is often the
    head as well and is trained.
    """
    student = copy.deepcopy(module)
    student.stack.first = 0
    student.requires_grad_(True)
    if not isinstance(student, LanguageModel):
        # It is the teacher's, and fits what the student is to give.
        student.head.requires_grad_(False)
        student.backbone.get_input_embeddings().requires_grad_(False)
    return student


def distil(
    teacher: Module,
    student: Module,
    kept: Sequence[int],
    batches: Iterator[Batch],
    settings: Distillation,
    told: Callable[[int, float], None],
    pruned: Mapping[str, Linear] | None = None,
    unfinished: Unfinished | None = None,
) -> float:
    """Teach a student, in place.

    Parameters
    ----------
    kept : sequence of int
        Which of the teacher's blocks the student's were.
    batches : iterator of dict
        ``input_ids`` and ``attention_mask``, as many as there are steps.
    told : callable
        Hears the number of the step and its loss.
    pruned : mapping, optional
        The student's layers whose zeros stay.
    unfinished : Unfinished, optional
        Where it is kept how far teaching is; what lies there is gone on with.

    Returns
    -------
    float
        The mean loss of the last tenth of the steps.

    Raises
    ------
    TrainingError
        If the loss is no number.
    """
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=settings.learning_rate, weight_decay=0.01, fused=True
    )
    teacher.eval()
    student.train()
    with zeros_kept(pruned or {}, optimizer):
        losses = [] if unfinished is None else unfinished.resume(trained, optimizer)
        for _ in losses:
            next(batches)
        for step in range(len(losses), settings.steps):
            loss = _loss(teacher, student, kept, next(batches), settings)
            if not bool(torch.isfinite(loss)):
                raise TrainingError(
                    f"the loss of step {step + 1} is no number", "give a lower --learning-rate"
                )
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained.values(), 1.0)
            optimizer.param_groups[0]["lr"] = settings.rate(step)
            optimizer.step()
            losses.append(loss.item())
            if unfinished is not None:
                unfinished.keep(trained, optimizer, losses)
            told(step + 1, losses[-1])
    student.eval()
    last = losses[-settings.rise :]
    return sum(last) / len(last)


def _loss(
    teacher: Module, student: Module, kept: Sequence[int], batch: Batch, settings: Distillation
) -> Tensor:
    mask = batch["attention_mask"].bool()
    with torch.no_grad(), _block_outputs(teacher) as right:
        wanted = logits_of(teacher, batch)
    with _block_outputs(student) as found:
        given = logits_of(student, batch)
    heat = settings.temperature
    loss = heat**2 * kl_div(
        log_softmax(given / heat, -1),
        log_softmax(wanted / heat, -1),
        reduction="batchmean",
        log_target=True,
    )
    if settings.hidden_weight == 0:
        return loss
    ends = [*(place - 1 for place in kept[1:]), len(right) - 1]
    apart = [
        (normalize(own[mask].float(), dim=-1) - normalize(right[end][mask].float(), dim=-1))
        .square()
        .sum(-1)
        .mean()
        for own, end in zip(found, ends, strict=True)
    ]
    return loss + settings.hidden_weight * torch.stack(apart).mean()


def logits_of(module: Module, batch: Batch) -> Tensor:
    """Return what a model says, float32 (N, C), of each text, or each token that is no padding."""
    if isinstance(module, TextClassifier):
        return module(batch)
    mask = batch["attention_mask"].bool()
    if isinstance(module, TokenClassifier):
        return module(batch)[mask]
    said = module.before_loss(batch).float()
    return said[mask[:, 1:]]


@contextmanager
def _block_outputs(module: Module) -> Iterator[list[Tensor]]:
    """Collect what each block gives, (B, T, H), in order."""
    found: list[Tensor] = []

    def keep(block: nn.Module, given: Any, gives: Any) -> None:
        found.append(gives[0] if isinstance(gives, tuple) else gives)

    with ExitStack() as stack:
        for block in module.stack.layers:
            handle = block.register_forward_hook(keep)
            stack.callback(handle.remove)
        yield found
