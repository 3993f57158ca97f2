"""Measure a model on held-out text, and let it continue prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.models.drawing import Sampling
from fedllm.models.generation import Generator, Writing
from fedllm.pretraining.objectives import Objective
from fedllm.pretraining.parallel import World
from fedllm.randomness import RandomStream

_TEMPERATURE = 0.8


@torch.no_grad()
def held_out_sums(
    objective: Objective,
    pieces: Sequence[NDArray[np.int64]],
    rows: int,
    world: World,
    autocast: torch.autocast,
) -> NDArray[np.float64]:
    """Return the sum of each measure over held-out pieces, and its number of targets.

    Every process works on its share of the batches. All run the model equally often, as a
    sharded model needs; what is left over counts nothing.

    Parameters
    ----------
    pieces : sequence of arrays
        Held-out pieces; the same in each process.
    rows : int
        Pieces worked on at once.

    Returns
    -------
    array
        float64 of shape (2, measures), summed over processes.
    """
    objective.eval()
    sums = torch.zeros(2, len(objective.measures), dtype=torch.float64)
    batches = _batches_of_equal_shape(pieces, rows)
    for turn in range(-(-len(batches) // world.size)):
        number = turn * world.size + world.rank
        chosen = batches[min(number, len(batches) - 1)]
        # The same masks at every evaluation, so that figures can be compared.
        random = [RandomStream.seeded(0, "evaluation", i) for i in chosen]
        batch = objective.batch([pieces[i] for i in chosen], random)
        batch = {k: v.to(world.device) for k, v in batch.items()}
        with autocast:
            measured = objective.measure(batch)
        if number < len(batches):
            sums += measured
    objective.train()
    return np.asarray(world.total(*sums.flatten().tolist())).reshape(2, -1)


def _batches_of_equal_shape(pieces: Sequence[NDArray[np.int64]], rows: int) -> list[list[int]]:
    groups: dict[int, list[int]] = {}
    for number, piece in enumerate(pieces):
        groups.setdefault(piece.shape[-1], []).append(number)
    return [
        group[start : start + rows]
        for group in groups.values()
        for start in range(0, len(group), rows)
    ]


def held_out_figures(
    measures: Sequence[str], parts: Mapping[str, NDArray[np.float64]], text_bytes: Mapping[str, int]
) -> dict[str, float]:
    """Put the sums of several held-out texts into figures: over all, and for each.

    Parameters
    ----------
    measures : sequence of str
        What the sums are of.
    parts : mapping of str to array
        Sums and counts of each text, as `held_out_sums` returns them.
    text_bytes : mapping of str to int
        UTF-8 bytes of each text of which every token was predicted; empty otherwise.

    Returns
    -------
    dict
        ``bits_per_byte`` if the bytes are known, else ``held_out_<measure>``; if there are
        several texts also the same with ``/<name of the text>`` for each.
    """

    def figures(sums: NDArray[np.float64], size: int | None, suffix: str) -> dict[str, float]:
        if size is not None:
            return {f"bits_per_byte{suffix}": bits_per_byte(float(sums[0, 0]), size)}
        means = sums[0] / np.maximum(sums[1], 1.0)
        return {f"held_out_{m}{suffix}": float(v) for m, v in zip(measures, means, strict=True)}

    whole = sum(text_bytes.values()) if text_bytes else None
    result = figures(np.sum(list(parts.values()), axis=0), whole, "")
    if len(parts) > 1:
        for name, sums in parts.items():
            result |= figures(sums, text_bytes.get(name), f"/{name}")
    return result


def bits_per_byte(summed_loss: float, text_bytes: int) -> float:
    """Turn a summed loss in nats over a text into bits per UTF-8 byte of it."""
    return summed_loss / math.log(2) / text_bytes


def continue_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    tokens: int,
    seed: int,
) -> list[str]:
    """Return what the model writes after each prompt; nothing where it leaves no room."""
    end = tokenizer.eos_token_id
    generator = Generator(model, tokenizer, () if end is None else (int(end),))
    ids = [list(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    longest = generator.positions
    fits = [bool(one) and (longest is None or len(one) < longest) for one in ids]
    written = generator.write(
        [one for one, fit in zip(ids, fits, strict=True) if fit],
        Writing(tokens, sampling=Sampling(_TEMPERATURE, seed=seed)),
    )
    texts = iter(written)
    return [next(texts).text if fit else "" for fit in fits]
