"""How good a model's answers to held-out prompts are, beside the starting model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from fedllm.alignment.guards import look_at, shares
from fedllm.alignment.losses import kl_estimate
from fedllm.alignment.policy import Policy
from fedllm.alignment.rollouts import sample
from fedllm.alignment.scoring import Scorer, scores_of
from fedllm.config.alignment import GuardsSection
from fedllm.models.generation import Generator
from fedllm.randomness import RandomStream

_RESAMPLED = 2000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Prompt:
    """A public prompt.

    Attributes
    ----------
    text : str
    ids : tuple of int
        Its tokens in the model's template.
    """

    text: str = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)


class Measured(BaseModel):
    """What was found of one answer to each of some prompts.

    Attributes
    ----------
    rewards, verdicts : list of float
        Of each answer, by the reward model and by the judge.
    shares : dict of str to float
        `fedllm.alignment.guards.shares`, and ``kl``: nats an answer from the reference.
    """

    model_config = ConfigDict(frozen=True)

    rewards: list[float]
    verdicts: list[float]
    shares: dict[str, float]

    @property
    def verdict(self) -> float:
        """The judge's mean."""
        return float(np.mean(self.verdicts))

    def figures(self) -> dict[str, float]:
        """Return the means; the judge's where it is another than the reward model."""
        judge = {} if self.verdicts == self.rewards else {"judge": self.verdict}
        return {"reward": float(np.mean(self.rewards)), **judge, **self.shares}


class Measuring:
    """Asks a model prompts that it does not learn from.

    Parameters
    ----------
    policy : Policy
    generator : Generator
        Writes with the policy's model.
    reward, judge : Scorer
    guards : GuardsSection
    new_tokens, rows : int
        Most tokens of an answer; answers worked on at once.
    gap : str
        What every answer begins with.
    """

    def __init__(
        self,
        policy: Policy,
        generator: Generator,
        reward: Scorer,
        judge: Scorer,
        guards: GuardsSection,
        new_tokens: int,
        rows: int,
        gap: str,
    ) -> None:
        self._policy = policy
        self._generator = generator
        self._reward, self._judge = reward, judge
        self._guards = guards
        self._new_tokens, self._rows, self._gap = new_tokens, rows, gap

    def measure(self, prompts: Sequence[Prompt], seed: int) -> Measured:
        """Measure the model as it is now.

        Raises
        ------
        TrainingError
            See `scores_of`.
        """
        answers = sample(
            self._generator,
            [one.ids for one in prompts],
            self._new_tokens,
            seed,
            4 * self._rows,
            self._gap,
        )
        asked, texts = [one.text for one in prompts], [one.text for one in answers]
        rewards = scores_of(self._reward, asked, texts)
        verdicts = rewards if self._judge is self._reward else scores_of(self._judge, asked, texts)
        nats = 0.0
        # A piece at a time: what frozen layers give of all would fill the memory.
        for piece in self._policy.pieces(answers, self._rows):
            own, reference = self._policy.log_probs([piece]), self._policy.reference([piece])
            nats += float(kl_estimate(own[0], reference[0]).double().sum())
        found = {**shares(look_at(answers, self._guards)), "kl": nats / len(answers)}
        return Measured(rewards=rewards.tolist(), verdicts=verdicts.tolist(), shares=found)


def compared(after: Measured, before: Measured, seed: int) -> dict[str, float]:
    """Return how much better answers became, with 95% intervals over prompts.

    Parameters
    ----------
    after, before : Measured
        Of the same prompts.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict of str to float
        ``win_rate``: of the judge's comparisons with the starting model's answer to the same
        prompt, an equal one counts a half. ``reward_gain``: in standard deviations of the starting
        model's rewards. Both with ``_low`` and ``_high``: the percentile bootstrap of pairs.
    """
    apart = np.subtract(after.verdicts, before.verdicts)
    wins = (apart > 0) + 0.5 * (apart == 0)
    gains = np.subtract(after.rewards, before.rewards) / deviation(before)
    found: dict[str, float] = {}
    for name, values in (("win_rate", wins), ("reward_gain", gains)):
        low, high = interval(values, seed)
        found |= {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}
    return found


def deviation(measured: Measured) -> float:
    """Return the standard deviation of rewards; never 0."""
    return max(float(torch.tensor(measured.rewards).double().std(correction=0)), 1e-12)


def interval(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """Return a 95% interval of the mean of values (N,): the percentile bootstrap."""
    count = len(values)
    places = RandomStream.seeded(seed, "bootstrap").below(count, _RESAMPLED * count)
    means = values[places.astype(np.int64)].reshape(_RESAMPLED, count).mean(1)
    low, high = np.percentile(means, _INTERVAL)
    return float(low), float(high)
