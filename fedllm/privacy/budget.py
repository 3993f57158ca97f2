"""Refuse what a data set's privacy budget does not allow, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedllm.errors import BudgetError, ConfigError
from fedllm.privacy.accounting import EpsilonEstimate, epsilon
from fedllm.privacy.events import Event, Folded, fold

# Who is looking: everyone who sees only opened sums (the promise of a run), or everyone else
# colluding against the site.
View = Literal["sums", "colluders"]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that a data set may ever spend, over all runs.

    Parameters
    ----------
    epsilon : float
        Positive; infinite only at a site that allows runs without privacy.
    delta : float
        In (0, 1).

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not self.epsilon > 0 or not 0 < self.delta < 1:
            raise ConfigError(
                f"a ceiling of epsilon {self.epsilon!r}, delta {self.delta!r} is impossible",
                "epsilon must be positive and delta in (0, 1)",
            )
        object.__setattr__(self, "epsilon", float(self.epsilon))
        object.__setattr__(self, "delta", float(self.delta))


@dataclass(frozen=True, slots=True)
class Charge:
    """What one round, or one evaluation, is going to do to a data set.

    Attributes
    ----------
    run : str
        Name of the run.
    round : int
        Its round, from 0.
    dataset : str
        The data set's id, from `Ledger.register`.
    events : tuple of Event
        What happens in the eyes of those who see opened sums only.
    colluder_events : tuple of Event or None
        The same in the eyes of everyone else colluding; None where it makes no difference
        (local noise). The ceiling holds for ``events``; these are recorded beside them.
    delta : float
        The delta that the run asked for; the ledger accounts at the ceiling's.
    purpose : str
        "training" or "evaluation".
    """

    run: str
    round: int
    dataset: str
    events: tuple[Event, ...]
    colluder_events: tuple[Event, ...] | None = None
    delta: float = 1e-5
    purpose: Literal["training", "evaluation"] = "training"

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))
        if self.colluder_events is not None:
            object.__setattr__(self, "colluder_events", tuple(self.colluder_events))
        if not self.run or self.round < 0 or not self.events:
            raise ConfigError(
                "a charge needs a run, a round from 0 and at least one event",
                "use NonPrivate() for a round without differential privacy",
            )
        if not 0 < self.delta < 1 or self.purpose not in ("training", "evaluation"):
            raise ConfigError("a charge has a wrong delta or purpose", "see fedllm.privacy.budget")


class BudgetGuard:
    """Decides whether planned events fit under a ceiling.

    What was once found to fit stays fitting for every part of it, because leaving events
    out never raises epsilon; so the rounds of a run that was checked as a whole cost nothing.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Folded, Ceiling]] = []

    def require(
        self, spent: Sequence[Event], planned: Sequence[Event], ceiling: Ceiling, what: str
    ) -> None:
        """Do nothing if ``spent`` and ``planned`` together stay within ``ceiling``.

        Parameters
        ----------
        spent, planned : sequence of Event
            Charged before, and asked for now.
        ceiling : Ceiling
            The site's.
        what : str
            Names the request in the message, from public words only.

        Raises
        ------
        BudgetError
            If they exceed it; the message says how much is spent, asked for and allowed.
        """
        total = fold([*spent, *planned])
        if math.isinf(ceiling.epsilon):
            return
        if any(ceiling == known and total.within(all_of_it) for all_of_it, known in self._known):
            return
        after = epsilon([*spent, *planned], ceiling.delta).value
        if after > ceiling.epsilon:
            raise self._refusal(epsilon(spent, ceiling.delta), after, ceiling, what)
        self._known = [*self._known[-15:], (total, ceiling)]

    @staticmethod
    def _refusal(before: EpsilonEstimate, after: float, ceiling: Ceiling, what: str) -> BudgetError:
        left = max(0.0, ceiling.epsilon - before.value)
        return BudgetError(
            f"{what} would bring the data set to epsilon {_shown(after)}; its ceiling is "
            f"{_shown(ceiling.epsilon)} at delta {ceiling.delta:g}, of which "
            f"{_shown(before.value)} is spent and {_shown(left)} is left",
            "plan fewer rounds, more noise or a lower sampling rate (fedllm privacy plan); "
            "only the site can raise its ceiling, in site.toml",
        )


def _shown(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.4g}"
