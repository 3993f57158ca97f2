"""What PPO and GRPO minimise, token by token, and how dear distance from the reference is.

All take and give one number a token, (N,), of the tokens that were sampled; their mean is over
tokens, so that a token of a long answer counts as much as one of a short one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# Of the relative distance from the target, at most so much of it, moves the coefficient.
_LARGEST, _GAIN = 0.2, 0.5


def clipped_objective(
    log_probs: Tensor, sampled: Tensor, advantages: Tensor, clip: float
) -> Tensor:
    """Return minus PPO's clipped objective (Schulman et al. 2017), (N,).

    Parameters
    ----------
    log_probs : Tensor
        (N,), of the tokens under the model that is trained; with its gradient.
    sampled : Tensor
        (N,), of the same tokens under the policy that sampled them.
    advantages : Tensor
        (N,).
    clip : float
        How far the ratio of both is followed, from 1.
    """
    ratio = (log_probs - sampled).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)


def clipped_share(log_probs: Tensor, sampled: Tensor, clip: float) -> float:
    """Return of which part of the tokens the ratio is farther from 1 than is followed."""
    return float((((log_probs - sampled).exp() - 1).abs() > clip).double().mean())


def kl_estimate(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Return an estimate of KL(policy, reference) from each token that the policy drew, (N,).

    Unbiased, never negative, and of small variance (Schulman 2020, "Approximating KL divergence",
    the estimator k3). Its gradient by ``log_probs`` is what GRPO adds to its loss.

    Parameters
    ----------
    log_probs, reference : Tensor
        (N,), of the tokens under the policy and the reference, in nats.
    """
    apart = reference - log_probs
    return apart.exp() - 1 - apart


def clipped_value_loss(values: Tensor, before: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return half the squared error of values, the larger of itself and where it is clipped, (N,).

    Parameters
    ----------
    values : Tensor
        (N,), with their gradient.
    before : Tensor
        (N,), as they were when the answers were sampled.
    returns : Tensor
        (N,): what they should have been.
    clip : float
        How far a value is followed from before.
    """
    near = before + (values - before).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


@dataclass(frozen=True)
class KlPrice:
    """What a nat of distance from the reference costs (Ziegler et al. 2019).

    Attributes
    ----------
    coefficient : float
        In standard deviations of the reward.
    target : float, optional
        Nats an answer; above it the coefficient rises, below it falls. None: it stays.
    """

    coefficient: float
    target: float | None

    def after(self, kl: float) -> KlPrice:
        """Return the price of the next step, after one whose answers were ``kl`` nats away."""
        if self.target is None:
            return self
        apart = max(-_LARGEST, min(_LARGEST, kl / self.target - 1))
        return KlPrice(self.coefficient * math.exp(_GAIN * apart), self.target)
