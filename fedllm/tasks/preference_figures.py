"""How often a model prefers what people prefer, beside rules that read nothing.

The interval of the accuracy is a bootstrap over ranking events, since pairs of one event are no
independent draws: each event counts a Poisson number of times in each of the replicates (Hanley
and MacGibbon 2006), drawn from its own tokens. So one pass is enough, and the same event counts
alike in every model and round, so that differences of two of them may be compared replicate by
replicate. Where every event has the same share of right pairs all replicates are one number, which
says nothing of events that were not asked; see `interval`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedllm.models.sequences import ANSWER, AROUND, KINDS, SECOND, WORD
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from fedllm.models.transformer import Batch

REPLICATES = 400
# Of both ends of the interval, together.
_OUTSIDE = 0.05
# Shares that are nearer than this differ by rounding alone.
_SAME = 1e-9
# Loss, right, longer, overlap; at the end events that have a pair, and pairs.
_OWN = 4


def sums_of(
    batch: Batch,
    margins: NDArray[np.float64],
    losses: NDArray[np.float64],
    records: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return what a batch adds: loss, right pairs, pairs that rules get right, replicates, counts.

    Parameters
    ----------
    margins, losses : float64 array (P,)
        Of each pair.
    records : int64 array (P,)
        The record of the batch that it is of.
    """
    right = shares_right(margins)
    total = np.zeros(_OWN + 2 * REPLICATES + 2)
    ids, labels = batch["input_ids"].cpu().numpy(), batch["labels"].cpu().numpy()
    pairs = batch["pairs"].cpu().numpy()
    for record in range(len(ids)):
        mine = records == record
        own = pairs[record][pairs[record][:, 0] >= 0]
        rules = [rule(ids[record], labels[record], own) for rule in (_longer, _overlapping)]
        weights = _weights(ids[record][labels[record] >= 0])
        hits, count = float(right[mine].sum()), int(mine.sum())
        total[:_OWN] += [losses[mine].sum(), hits, *rules]
        total[_OWN:-2] += np.concatenate([weights * hits, weights * count])
        total[-2:] += [count > 0, count]
    return total


def figures_of(sums: NDArray[np.float64], records: int) -> dict[str, float]:
    """Turn sums into loss, accuracies and the interval of the model's."""
    loss, right, longer, overlap = (sums[:_OWN] / sums[-1]).tolist()
    low, high = interval(sums)
    return {
        "loss": loss,
        "accuracy": right,
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_accuracy": longer,
        "overlap_accuracy": overlap,
        "pairs": float(sums[-1]),
        "records": float(records),
    }


def replicates(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the accuracy in each replicate that has a pair, (R,)."""
    hits, counts = sums[_OWN : _OWN + REPLICATES], sums[_OWN + REPLICATES : -2]
    return hits[counts > 0] / counts[counts > 0]


def interval(sums: NDArray[np.float64]) -> tuple[float, float]:
    """Return the interval in which 95% of the replicates lie.

    Where these are all the same, it says what else may be so: of n events none differed, which has
    a probability of 5% where a share of 1 - 0.05^(1/n) of all events does. These may be all
    right or all wrong.
    """
    found = replicates(sums)
    if not len(found):
        return 0.0, 1.0
    if np.ptp(found) < _SAME:
        alike = _OUTSIDE ** (1 / sums[-2])
        share = float(found[0])
        return float(alike * share), float(alike * share + 1 - alike)
    low, high = np.quantile(found, (_OUTSIDE / 2, 1 - _OUTSIDE / 2))
    return float(low), float(high)


def shares_right(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 for each pair whose first answer is preferred, 0 for another, 1/2 for neither."""
    found: NDArray[np.float64] = (1.0 + np.sign(margins)) / 2.0
    return found


def _weights(tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    """Draw how often an event counts in each replicate, from its own tokens."""
    digest = hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()
    drawn = RandomStream.seeded(0, "bootstrap", digest).uniform(REPLICATES)
    return np.searchsorted(_POISSON, drawn, side="right").astype(np.float64)


_POISSON = np.exp(-1.0) * np.cumsum(1.0 / np.cumprod([1.0, *range(1, 18)]))


def _longer(ids: NDArray[np.int64], labels: NDArray[np.int64], pairs: NDArray[np.int64]) -> float:
    """Count the pairs of which the answer with more tokens is the preferred one."""
    lengths = [(len(one), len(other)) for one, other in _answers(ids, labels, pairs)]
    return float(shares_right(np.array([one - other for one, other in lengths])).sum())


def _overlapping(
    ids: NDArray[np.int64], labels: NDArray[np.int64], pairs: NDArray[np.int64]
) -> float:
    """Count the pairs of which the answer with more of its tokens in the prompt is preferred."""
    around = set(ids[(labels >= 0) & (labels % KINDS == AROUND)].tolist())

    def share(answer: Sequence[int]) -> float:
        tokens = set(answer)
        return len(tokens & around) / max(len(tokens), 1)

    found = [share(one) - share(other) for one, other in _answers(ids, labels, pairs)]
    return float(shares_right(np.array(found)).sum())


def _answers(
    ids: NDArray[np.int64], labels: NDArray[np.int64], pairs: NDArray[np.int64]
) -> list[tuple[list[int], list[int]]]:
    """Return the tokens of both answers of each pair."""

    def part(number: int, kind: int) -> list[int]:
        found: list[int] = ids[labels == KINDS * number + kind].tolist()
        return found

    # Where one sequence has both, the first one of two shows the better answer first.
    both = bool((labels[labels >= 0] % KINDS == WORD).any())
    return [
        (part(one, ANSWER), part(one, SECOND) if both else part(other, ANSWER))
        for one, other in pairs.tolist()
    ]
