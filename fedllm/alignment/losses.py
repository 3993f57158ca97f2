"""What PPO and GRPO minimise, token by token, and how dear distance from the reference is.

All take and give one number a token, (N,), of the tokens that were sampled; their mean is over
tokens, so that a token of a long answer counts as much as one of a short one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# How much of the relative distance from the target moves the price, and how much of that.
_LARGEST, _GAIN = 1.0, 0.5


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


def kl_price(coefficient: float, kl: float, target: float | None, least: float) -> float:
    """Return what a nat costs in the next step (after Ziegler et al. 2019).

    It rises while answers are farther from the reference than the target, and falls back while they
    are nearer, but not below ``least``: an alignment begins at a distance of 0, and a price that
    fell then would let the model run past the target before it had risen again.

    Parameters
    ----------
    coefficient : float
        What a nat cost, in standard deviations of the reward.
    kl : float
        Of the step's answers, in nats an answer.
    target : float, optional
        Of ``kl``; None: the price stays.
    least : float
        It never falls below.
    """
    if target is None:
        return coefficient
    apart = max(-_LARGEST, min(_LARGEST, kl / target - 1))
    return max(coefficient * math.exp(_GAIN * apart), least)
