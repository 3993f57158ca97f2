"""Attacks that try to get a planted secret out of a model.

Two measures, both independent of any model class:

* `extracted`: does greedy completion of the prompt give the secret, word for word?
* `exposure`: the rank of the true secret among random ones of the same format, by the
  model's loss (Carlini et al. 2019, "The Secret Sharer", sections 4.2 and 4.3). It sees
  memorisation long before completion does, and needs no luck in decoding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedllm.randomness import RandomStream

Pair = tuple[str, str]


class SecretLike(Protocol):
    """A prompt and the response that must not come out."""

    @property
    def prompt(self) -> str:
        """What the attacker asks."""
        ...

    @property
    def response(self) -> str:
        """What the attacker wants to hear."""
        ...


@dataclass(frozen=True, slots=True)
class Exposure:
    """How much better than chance a model ranks the true secrets.

    Attributes
    ----------
    bits : tuple of float
        For each secret, ``log2(candidates) - log2(rank)``. 0 is the worst rank,
        `maximum` the best; a model that never saw the secret averages `expected`.
    ranks : tuple of int
        1 is the most likely of all candidates.
    candidates : int
        How many each secret was ranked among, itself included.
    """

    bits: tuple[float, ...]
    ranks: tuple[int, ...]
    candidates: int

    @property
    def maximum(self) -> float:
        """Exposure of a secret that ranks first."""
        return math.log2(self.candidates)

    @property
    def mean(self) -> float:
        """Mean over the secrets."""
        return float(np.mean(self.bits))

    @property
    def expected(self) -> float:
        """Mean exposure when every rank is equally likely, as without memorisation."""
        total = math.lgamma(self.candidates + 1) / math.log(2)
        return self.maximum - total / self.candidates


def exposure(
    score: Callable[[list[Pair]], NDArray[np.floating]],
    secrets: Sequence[SecretLike],
    candidates: Callable[[int, RandomStream], Sequence[str]],
    count: int,
    random: RandomStream,
) -> Exposure:
    """Rank each true secret among ``count - 1`` random ones of the same format.

    Parameters
    ----------
    score : callable
        Takes (prompt, response) pairs, gives (N,) losses of the responses; the sum over
        tokens, so that lengths in tokens do not matter to the order of likelihoods.
    secrets : sequence
        Secrets with a prompt and a response.
    candidates : callable
        Draws that many responses of the secrets' format.
    count : int
        Size of each ranking, the true secret included.
    random : RandomStream
        Where candidates come from; drawn anew for each secret.

    Raises
    ------
    ValueError
        If there is no secret, if ``count`` is below 2, or if a loss is not finite or their
        number is not the number of pairs.
    """
    if not secrets or count < 2:
        raise ValueError("exposure needs at least one secret and one candidate beside it")
    ranks = []
    for secret in secrets:
        others = [c for c in candidates(count - 1, random) if c != secret.response]
        pairs = [(secret.prompt, response) for response in (secret.response, *others)]
        losses = np.asarray(score(pairs), dtype=np.float64)
        if losses.shape != (len(pairs),) or not np.isfinite(losses).all():
            raise ValueError("score must give one finite loss for each pair")
        # Ties count half, so that a model that is indifferent is not called leaking.
        better = int(np.count_nonzero(losses[1:] < losses[0]))
        equal = int(np.count_nonzero(losses[1:] == losses[0]))
        ranks.append(1 + better + (equal + 1) // 2)
    bits = tuple(math.log2(count) - math.log2(rank) for rank in ranks)
    return Exposure(bits, tuple(ranks), count)


def extracted(
    generate: Callable[[list[str]], list[str]], secrets: Sequence[SecretLike]
) -> tuple[bool, ...]:
    """Tell for each secret whether greedy completion of its prompt gives it.

    Parameters
    ----------
    generate : callable
        Completes prompts, most likely token first.
    secrets : sequence
        Secrets with a prompt and a response; white space at the ends does not count.

    Raises
    ------
    ValueError
        If ``generate`` does not give one text for each prompt.
    """
    replies = generate([secret.prompt for secret in secrets])
    if len(replies) != len(secrets):
        raise ValueError("generate must give one reply for each prompt")
    return tuple(
        reply.strip() == secret.response.strip()
        for reply, secret in zip(replies, secrets, strict=True)
    )
