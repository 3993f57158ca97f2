"""How much a model prefers one answer to another, and what that costs where people do not.

A margin m says that the first of two answers is preferred with probability sigmoid(m) (Bradley and
Terry 1952). It is

- of "dpo", "ipo" and "hinge": beta times by how much more the trained model than the one that the
  run starts from favours the first answer, in nats (Rafailov et al. 2023);
- of "reward": the difference of two rewards;
- of "selector": the difference of the logits of two words that name an answer, averaged over both
  orders of the answers.

The loss of a pair is -log sigmoid(m); of "hinge" max(0, 1 - m) (Zhao et al. 2023), of "ipo"
(m - 1/2)^2, which is that of Azar et al. (2024) times beta squared, so that it is of the others'
size. A record's is the mean over its pairs, and so one gradient, clipped once: KTO (Ethayarajh et
al. 2024) is not here, since its loss of one record hangs on the mean of all others of its batch,
and a gradient of one unit would move with every other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, assert_never, cast

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from fedllm.config import Objective, PreferenceSection
from fedllm.models.sequences import (
    AT_ONCE,
    WORD,
    answer_likelihoods,
    by_parts,
    first_sequences,
    sequences_in,
    unpacked,
)

if TYPE_CHECKING:
    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch


def margins(model: SharedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return how much the model prefers the first answer of each pair.

    Returns
    -------
    margins : Tensor
        (P,), float32.
    records : Tensor
        (P,), int64: the record of the batch that the pair is of.
    """
    sequences = unpacked(batch, model.pad_id, one_vector=model.module.one_vector)
    scores = scores_of(model, sequences, batch)
    pairs, first = batch["pairs"], first_sequences(batch)
    there = pairs[:, :, 0] >= 0
    places = (pairs + first[:, None, None])[there]
    return scores[places[:, 0]] - scores[places[:, 1]], torch.nonzero(there)[:, 0]


def scores_of(model: SharedModel, sequences: Batch, batch: Batch) -> Tensor:
    """Return a number of each sequence, (S,), float32, whose differences are margins.

    Parameters
    ----------
    sequences : dict
        `unpacked` of ``batch``.
    batch : dict
        Perhaps with "reference", (B, K); else it is computed.
    """
    learned, most = cast(PreferenceSection, model.preference), _at_once(len(batch["labels"]))
    network: Any = model.module
    match learned.objective:
        case "dpo" | "ipo" | "hinge":
            reference = _reference(model, sequences, batch)
            found = by_parts(partial(answer_likelihoods, network), sequences, most, model.trained)
            return learned.beta * (found - reference)
        case "reward":
            return by_parts(network, sequences, most, model.trained)[:, 0]
        case "selector":
            return by_parts(partial(_chosen, network), sequences, most, model.trained)
        case _:
            assert_never(learned.objective)


def pair_losses(objective: Objective, margin: Tensor) -> Tensor:
    """Return the loss of each pair, (P,), of margins (P,)."""
    match objective:
        case "dpo" | "reward" | "selector":
            return softplus(-margin)
        case "ipo":
            return (margin - 0.5) ** 2
        case "hinge":
            return relu(1.0 - margin)
        case _:
            assert_never(objective)


def means_of_records(values: Tensor, records: Tensor, size: int) -> Tensor:
    """Return the mean of each record's values, (B,); 0 of one that has none."""
    counts = torch.bincount(records, minlength=size).clamp(min=1)
    return values.new_zeros(size).index_add_(0, records, values) / counts


def _at_once(records: int) -> int:
    """Return how many sequences of so many records are computed together: two each, or `AT_ONCE`.

    Without a gradient no layer keeps anything, and all pairs of a ranking of eight have room.
    """
    return max(2 * records, AT_ONCE if torch.is_grad_enabled() else 8 * AT_ONCE)


def _reference(model: SharedModel, sequences: Batch, batch: Batch) -> Tensor:
    if "reference" not in batch:
        return model.reference.of(sequences)
    counts, kept = sequences_in(batch), batch["reference"]
    return kept[torch.arange(kept.shape[1], device=kept.device) < counts[:, None]]


def _chosen(network: Any, sequences: Batch) -> Tensor:
    """Return, at the first sequence of each two, how much its word is favoured in both."""
    ids = sequences["input_ids"]
    named = sequences | {"labels": torch.where(sequences["kinds"] == WORD, ids, -100)}
    states, words, _ = network.counted(named)
    # They stand in twos, whose words are A and B.
    others = words.view(-1, 2).flip(1).reshape(-1)
    favoured = network.readout.losses(states, others) - network.readout.losses(states, words)
    both = favoured.view(-1, 2).mean(1)
    return torch.stack([both, torch.zeros_like(both)], dim=1).reshape(-1)
