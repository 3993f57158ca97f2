"""How much better each token, or each answer, was than expected.

Answers lie one behind the other without padding: what is no token cannot count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Below it a group's rewards are taken for equal: what is left of them is rounding.
_SMALLEST = 1e-4


def token_rewards(
    reward: float, log_probs: Tensor, reference: Tensor, coefficient: float
) -> Tensor:
    """Return the reward of each token of one answer (Ziegler et al. 2019), (T,).

    Each token pays for what it is likelier than under the reference; the answer's own reward
    comes with its last token, which is the end where the model wrote one.

    Parameters
    ----------
    reward : float
        Of the answer.
    log_probs, reference : Tensor
        (T,), of the sampled tokens under the policy that sampled and the reference, in nats.
    coefficient : float
        What a nat costs.
    """
    rewards = -coefficient * (log_probs - reference)
    rewards[-1] += reward
    return rewards


def generalised(rewards: Tensor, values: Tensor, gae_lambda: float) -> Tensor:
    """Return the generalised advantage estimates of one answer (Schulman et al. 2016), (T,).

    Nothing is discounted: an answer is short, and only its end is judged.

    Parameters
    ----------
    rewards, values : Tensor
        (T,): what each token brought, and what was expected from before it on.
    gae_lambda : float
        0 believes the values, 1 the rewards alone.
    """
    following = torch.cat([values[1:], values.new_zeros(1)])
    surprises = rewards + following - values
    advantages, running = torch.empty_like(surprises), surprises.new_zeros(())
    for place in range(len(surprises) - 1, -1, -1):
        running = surprises[place] + gae_lambda * running
        advantages[place] = running
    return advantages


def whitened(advantages: Sequence[Tensor]) -> list[Tensor]:
    """Return advantages with mean 0 and standard deviation 1 over all tokens of all answers."""
    whole = torch.cat(list(advantages))
    scale = whole.std(correction=0).clamp(min=1e-8)
    return [(one - whole.mean()) / scale for one in advantages]


def group_relative(rewards: Tensor, size: int) -> Tensor:
    """Return how each answer stands among those to the same prompt (Shao et al. 2024), (N,).

    Parameters
    ----------
    rewards : Tensor
        (N,), answers to one prompt one behind the other.
    size : int
        Answers to one prompt; N is a multiple.
    """
    groups = rewards.reshape(-1, size)
    apart = groups - groups.mean(1, keepdim=True)
    spread = groups.std(1, correction=0, keepdim=True)
    return (apart / (spread + _SMALLEST)).reshape(-1)
