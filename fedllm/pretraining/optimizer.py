"""Muon for hidden matrices, AdamW for everything else, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from fedllm.pretraining.config import OptimizationSection
from fedllm.pretraining.parallel import layers

_ADAM_BETAS = (0.9, 0.95)


class Optimizers:
    """One or two optimisers that step together under one schedule.

    Muon (Jordan et al. 2024) orthogonalises the momentum of each hidden matrix; its update
    is scaled to the root mean square of AdamW's (Liu et al. 2025, "Muon is scalable for LLM
    training"), so both take the same learning rate. Embeddings, heads, norms and biases stay
    with AdamW.
    """

    def __init__(self, model: PreTrainedModel, section: OptimizationSection) -> None:
        self._section = section
        self._names = {id(p): name for name, p in model.named_parameters()}
        hidden, matrices, vectors = _groups(model)
        decay = section.weight_decay
        self._parts: list[torch.optim.Optimizer] = []
        if section.optimizer == "muon" and hidden:
            self._parts.append(
                torch.optim.Muon(
                    hidden,
                    lr=section.learning_rate,
                    weight_decay=decay,
                    momentum=0.95,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        else:
            matrices = hidden + matrices
        self._parts.append(
            torch.optim.AdamW(
                [
                    {"params": matrices, "weight_decay": decay},
                    {"params": vectors, "weight_decay": 0.0},
                ],
                lr=section.learning_rate,
                betas=_ADAM_BETAS,
                fused=True,
            )
        )

    def step(self, step: int) -> float:
        """Apply the gradients as step number ``step`` (from 0); return the learning rate."""
        rate = learning_rate(step, self._section)
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)
        return rate

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments of each parameter by name, to be saved or to be read into."""
        if not all(part.state for part in self._parts):
            self._allocate()
        return {
            f"{self._names[id(parameter)]}.{key}": value
            for part in self._parts
            for parameter, state in part.state.items()
            for key, value in state.items()
        }

    def _allocate(self) -> None:
        # Optimisers make their moments in the first step; one of nothing at rate 0 does.
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = 0.0
                for parameter in group["params"]:
                    parameter.grad = torch.zeros_like(parameter)
            part.step()
            part.zero_grad(set_to_none=True)


def _groups(model: PreTrainedModel) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the layers' matrices, other matrices (embeddings, heads), and the rest."""
    hidden = {
        id(parameter)
        for layer in layers(model)
        for module in layer.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim == 2]
    return (
        [p for p in matrices if id(p) in hidden],
        [p for p in matrices if id(p) not in hidden],
        [p for p in parameters if p.ndim != 2],
    )


def learning_rate(step: int, section: OptimizationSection) -> float:
    """Return the rate of a step: linear warm-up, then a cosine to its final share."""
    steps = section.steps
    warmup = round(section.warmup * steps)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    low = section.final_learning_rate
    return section.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def clip_gradients(parameters: Iterable[Tensor], norm: float) -> float:
    """Scale the whole gradient to at most ``norm``; return its norm before (L2)."""
    before = torch.nn.utils.clip_grad_norm_(list(parameters), norm)
    return float(before.full_tensor() if isinstance(before, DTensor) else before)
