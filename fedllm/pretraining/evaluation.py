"""Measure a model on held-out text, and let it continue prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.pretraining.objectives import Objective
from fedllm.pretraining.parallel import World
from fedllm.randomness import RandomStream

_TEMPERATURE = 0.8


@torch.no_grad()
def mean_losses(
    objective: Objective,
    pieces: Sequence[NDArray[np.int64]],
    rows: int,
    world: World,
    autocast: torch.autocast,
) -> tuple[dict[str, float], float]:
    """Return each part's mean loss per target in nats, and the sum of all losses.

    Parameters
    ----------
    pieces : sequence of arrays
        Held-out pieces; the same in each process, which works on its share.
    rows : int
        Pieces worked on at once.
    """
    objective.model.eval()
    parts = len(objective.parts)
    sums, targets = [0.0] * parts, [0.0] * parts
    groups: dict[int, list[int]] = {}
    for number, piece in enumerate(pieces):
        groups.setdefault(piece.shape[-1], []).append(number)
    number = 0
    for group in groups.values():
        for start in range(0, len(group), rows):
            chosen = group[start : start + rows]
            number += 1
            if number % world.size != world.rank:
                continue
            # The same masks at every evaluation, so that figures can be compared.
            random = [RandomStream.seeded(0, "evaluation", i) for i in chosen]
            batch = objective.batch([pieces[i] for i in chosen], random)
            batch = {k: v.to(world.device) for k, v in batch.items()}
            with autocast:
                losses = objective(batch).tolist()
            sums = [a + b for a, b in zip(sums, losses, strict=True)]
            targets = [a + b for a, b in zip(targets, objective.targets(batch), strict=True)]
    objective.model.train()
    totals = world.total(*sums, *targets)
    sums, targets = totals[:parts], totals[parts:]
    means = [a / max(1.0, b) for a, b in zip(sums, targets, strict=True)]
    return dict(zip(objective.parts, means, strict=True)), sum(sums)


def bits_per_byte(summed_loss: float, text_bytes: int) -> float:
    """Turn a summed loss in nats over a text into bits per UTF-8 byte of it."""
    return summed_loss / math.log(2) / text_bytes


@torch.no_grad()
def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int,
    seed: int,
) -> list[str]:
    """Return what the model writes after each prompt, special tokens included."""
    model.eval()
    texts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for prompt in prompts:
            encoded = tokenizer(prompt, return_tensors="pt")
            ids = encoded["input_ids"].to(model.device)
            room = model.config.max_position_embeddings - ids.shape[1]
            if room < 1:
                texts.append("")
                continue
            output = model.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(tokens, room),
                do_sample=True,
                temperature=_TEMPERATURE,
            )
            texts.append(str(tokenizer.decode(output[0, ids.shape[1] :])))
    model.train()
    return texts
