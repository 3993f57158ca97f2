"""Which token comes next: the likeliest, or one drawn with a sequence's own random numbers."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor
from transformers import LogitsProcessor

from fedllm.errors import ConfigError
from fedllm.randomness import RandomStream

# Most of what top-p keeps is among so few tokens; then the vocabulary need not be sorted.
_MANY = 256
# Below it, logits divided by the temperature overflow, and it is the likeliest that is drawn.
_COLDEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How a sequence's tokens are chosen.

    Attributes
    ----------
    temperature : float
        Logits are divided by it; 0, and what is next to it, takes the likeliest token each time.
    top_p : float
        Only the likeliest tokens that have this probability together are drawn from (nucleus
        sampling, Holtzman et al. 2020).
    seed : int, optional
        The same seed and prompt give the same numbers, wherever the prompt stands; none: numbers
        that nobody can repeat.

    Raises
    ------
    ConfigError
        If a number is out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(
                f"temperature {self.temperature} is no number from 0 on",
                "give 0 for the likeliest token each time, or 1 to draw as the model says",
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"top-p {self.top_p} is not above 0 and at most 1", "give 1 to draw from all tokens"
            )

    def drawing(self, prompt: Sequence[int], repeat: int = 0) -> Drawing:
        """Return what chooses the tokens of one sequence.

        Parameters
        ----------
        prompt : sequence of int
            Its tokens: other prompts get other numbers from the same seed.
        repeat : int
            How many sequences before it had the same prompt and seed.
        """
        if self.seed is None:
            return Drawing(self, RandomStream.secure())
        digest = hashlib.sha256(array("q", prompt).tobytes()).hexdigest()
        return Drawing(self, RandomStream.seeded(self.seed, "generation", digest, repeat))


LIKELIEST = Sampling()


@dataclass(frozen=True, eq=False)
class Drawing:
    """One sequence's choice of tokens; each call uses one random number."""

    sampling: Sampling
    stream: RandomStream = field(repr=False)

    def next(self, logits: Tensor) -> int:
        """Return the token that comes next, from its logits (V,), float32."""
        if self.sampling.temperature < _COLDEST:
            return int(logits.argmax())
        shares = (logits / self.sampling.temperature).softmax(-1)
        number = float(self.stream.uniform(1)[0])
        if self.sampling.top_p < 1:
            kept, tokens = _nucleus(shares, self.sampling.top_p)
            return int(tokens[_drawn(kept, number)])
        return _drawn(shares, number)


def _nucleus(shares: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return the likeliest tokens that have ``top_p`` together, and what each has."""
    found, tokens = shares.topk(min(_MANY, len(shares)))
    if float(found.double().sum()) < top_p:
        found, tokens = shares.sort(descending=True)
    # The token with which the sum is reached still belongs to it.
    before = found.double().cumsum(0) - found.double()
    kept = max(int((before < top_p).sum()), 1)
    return found[:kept], tokens[:kept]


def _drawn(shares: Tensor, number: float) -> int:
    """Return the place at which the sum of ``shares`` passes a part ``number`` of the whole."""
    sums = shares.double().cumsum(0)
    place = int(torch.searchsorted(sums, number * sums[-1], right=True))
    return min(place, len(shares) - 1)


class DrawnTokens(LogitsProcessor):
    """Leaves each row of a batch the one token that its own `Drawing` chose.

    What transformers draws itself comes from one generator for the whole batch, so that the same
    seed would give a sequence other tokens in other company.

    Parameters
    ----------
    drawings : sequence of Drawing
        Of the rows.
    """

    def __init__(self, drawings: Sequence[Drawing]) -> None:
        self._drawings = drawings

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return scores (B, V) of which all are minus infinity but one a row."""
        chosen = [d.next(row) for d, row in zip(self._drawings, scores, strict=True)]
        places = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, places, 0.0)  # type: ignore[return-value]
