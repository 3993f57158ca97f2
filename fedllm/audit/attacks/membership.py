"""Membership inference: how well does a model tell its training records from others.

The attack is LiRA (Carlini et al. 2022, "Membership inference attacks from first
principles"): the attacker trains shadow models of its own on random halves of the records,
and learns from them, for each record by itself, how its loss is distributed with the record
in the training data and without. Means are kept for each record; with few shadows the
variances are pooled, as the paper advises. Shadows are trained without privacy by the run's
own settings, in pairs on complementary halves, so that each record is in exactly half of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from fedllm.audit.attacks.canaries import losses_of
from fedllm.audit.attacks.results import MembershipAttack
from fedllm.audit.attacks.sandbox import Sandbox
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of

Vector = NDArray[np.float64]
_CURVE_POINTS = 200


@dataclass(frozen=True)
class Shadows:
    """What the attacker knows of each record's loss.

    Attributes
    ----------
    inside, outside : float64 array (N,)
        Mean confidence of the shadows that had the record, and of those that had not.
    deviation : float
        Standard deviation around these means, of all records together.
    """

    inside: Vector
    outside: Vector
    deviation: float

    def score(self, confidence: Vector) -> Vector:
        """Return the log likelihood ratio of membership, (N,)."""
        squares = (confidence - self.outside) ** 2 - (confidence - self.inside) ** 2
        return squares / (2 * self.deviation**2)


def train_shadows(
    sandbox: Sandbox,
    records: Sequence[Record],
    pairs: int,
    stream: RandomStream,
    heard: Callable[[int, int], None],
) -> Shadows:
    """Train shadow models in pairs on complementary random halves.

    Parameters
    ----------
    sandbox : Sandbox
        Of a run without privacy.
    records : sequence of Record
        Members and others of the model that is attacked; which is which is not used.
    pairs : int
        At least 1.
    heard : callable
        Called with the number of trained shadows and how many they will be.
    """
    everyone = sandbox.encode(list(records))
    inside, outside = np.zeros((pairs, len(records))), np.zeros((pairs, len(records)))
    for pair in range(pairs):
        half = stream.permutation(len(records)) < len(records) // 2
        for turn, chosen in enumerate((half, ~half)):
            mine = [record for record, taken in zip(records, chosen, strict=True) if taken]
            dataset = sandbox.encode(mine)
            sandbox.train(dataset, sandbox.settings(len(mine)), lambda *_: None)
            seen = sandbox.task.confidence(losses_of(sandbox.model, everyone))
            inside[pair, chosen] = seen[chosen]
            outside[pair, ~chosen] = seen[~chosen]
            heard(2 * pair + turn + 1, 2 * pairs)
    spread = np.concatenate([inside - inside.mean(0), outside - outside.mean(0)])
    # One pair shows no spread; the distance of its two means stands for it.
    deviation = float(np.sqrt(2 * pairs / max(1, 2 * pairs - 2)) * spread.std())
    if pairs == 1:
        deviation = float(np.abs(inside - outside).mean())
    return Shadows(inside.mean(0), outside.mean(0), max(deviation, 1e-6))


def attack(
    name: str,
    epsilon: float | None,
    model: SharedModel,
    everyone: EncodedDataset,
    member: NDArray[np.bool_],
    shadows: Shadows,
) -> MembershipAttack:
    """Attack a model with what it holds.

    Parameters
    ----------
    name, epsilon
        What the model is called and promises.
    everyone : EncodedDataset
        Members and others, in the order that the shadows know.
    member : bool array (N,)
        Which are members.
    """
    confidence = task_of(model).confidence(losses_of(model, everyone))
    # The attacked model may be more or less confident altogether than the shadows are.
    shifted = confidence - np.median(confidence) + np.median((shadows.inside + shadows.outside) / 2)
    return judge(name, epsilon, shadows.score(shifted), member)


def judge(
    name: str, epsilon: float | None, scores: Vector, member: NDArray[np.bool_]
) -> MembershipAttack:
    """Turn scores (N,) into the figures of an attack."""
    false_positive, true_positive = roc(scores, member)
    auc = float(np.trapezoid(true_positive, false_positive))
    low, high = _interval(auc, int(member.sum()), int((~member).sum()))
    places = np.linspace(0, len(false_positive) - 1, _CURVE_POINTS).round().astype(int)
    # The steep beginning is what counts, so it keeps every point.
    places = np.unique(np.concatenate([np.arange(min(50, len(false_positive))), places]))
    return MembershipAttack(
        name=name,
        epsilon=epsilon,
        auc=auc,
        auc_interval=(low, high),
        tpr_at_0_1_percent=_tpr(false_positive, true_positive, 0.001),
        tpr_at_1_percent=_tpr(false_positive, true_positive, 0.01),
        false_positive=tuple(false_positive[places].tolist()),
        true_positive=tuple(true_positive[places].tolist()),
    )


def roc(scores: Vector, member: NDArray[np.bool_]) -> tuple[Vector, Vector]:
    """Return false and true positive rates at every threshold, from (0, 0) to (1, 1).

    Equal scores move together: a tie is no information.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hit = scores[order], member[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    true, false = np.cumsum(hit)[last_of_tie], np.cumsum(~hit)[last_of_tie]
    return (
        np.concatenate([[0.0], false / max(1, int((~member).sum()))]),
        np.concatenate([[0.0], true / max(1, int(member.sum()))]),
    )


def _tpr(false_positive: Vector, true_positive: Vector, at: float) -> float:
    return float(true_positive[false_positive <= at].max())


def _interval(auc: float, members: int, others: int) -> tuple[float, float]:
    """Return a 95% interval of the AUC (Hanley and McNeil 1982)."""
    first, second = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    square = (
        auc * (1 - auc) + (members - 1) * (first - auc**2) + (others - 1) * (second - auc**2)
    ) / (members * others)
    reach = float(norm.isf(0.025)) * float(np.sqrt(max(square, 0.0)))
    return max(0.0, auc - reach), min(1.0, auc + reach)
