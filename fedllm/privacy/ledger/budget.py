"""Refuse what an account's privacy budget does not allow, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fedllm.errors import BudgetError, ConfigError
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.adaptive import adaptive_epsilon, adaptive_limit
from fedllm.privacy.accounting.events import Event, Folded, fold
from fedllm.privacy.ledger.fingerprints import Unit

# Who is looking: everyone who sees only opened sums (the promise of a run), or everyone else
# colluding against the site.
View = Literal["sums", "colluders"]
VIEWS: tuple[View, ...] = get_args(View)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The most that an account may ever spend, over all runs.

    Parameters
    ----------
    epsilon : float
        Positive; infinite only at a site that allows runs without privacy.
    delta : float
        In (0, 1).
    colluders_epsilon : float
        The same in the eyes of everyone else colluding; infinite where that is not limited.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    epsilon: float
    delta: float
    colluders_epsilon: float = math.inf

    def __post_init__(self) -> None:
        possible = self.epsilon > 0 and self.colluders_epsilon > 0
        if not possible or not 0 < self.delta < 1:
            raise ConfigError(
                f"a ceiling of epsilon {self.epsilon!r} (colluders {self.colluders_epsilon!r}), "
                f"delta {self.delta!r} is impossible",
                "epsilons must be positive and delta in (0, 1)",
            )
        for name in ("epsilon", "delta", "colluders_epsilon"):
            object.__setattr__(self, name, float(getattr(self, name)))

    def limit(self, view: View) -> float:
        """Return the largest epsilon in the eyes of one kind of observer."""
        return self.epsilon if view == "sums" else self.colluders_epsilon

    def adaptive_limit(self, view: View) -> float:
        """Return the largest epsilon whatever a coordinator chose its charges by."""
        return adaptive_limit(self.limit(view))

    def adaptive(self, folded: Folded, view: View) -> float:
        """Return what charges cost whatever they were chosen by; see `adaptive_epsilon`."""
        return adaptive_epsilon(folded, self.delta, self.limit(view))


@dataclass(frozen=True, slots=True)
class Charge:
    """What one round, or one evaluation, is going to do to the records behind an account.

    Attributes
    ----------
    run : str
        Random identifier of the run.
    round : int
        Its round, from 0.
    account : str
        The account that the site's policy declares; empty for all of the site's records.
    events : tuple of Event
        What happens in the eyes of those who see opened sums only.
    colluder_events : tuple of Event or None
        The same in the eyes of everyone else colluding; None where it makes no difference
        (local noise). `Ceiling.colluders_epsilon` holds for these.
    delta : float
        The delta that the run asked for; the ledger accounts at the ceiling's.
    purpose : str
        "training" or "evaluation".
    name : str
        What people call the run; a note, empty where nobody said.
    unit : {"record", "person"}
        What is protected.
    statement : str
        SHA-256 of the round's statement, in hexadecimal; a ledger takes each once. Empty where
        nothing but the charge depends on it.
    order_attempt : int
        The coordinator's number of the attempt, with a statement; rises within a run's purpose.
    config : str
        SHA-256 of the run's configuration, in hexadecimal, with a statement; a run has one.
    """

    run: str
    round: int
    account: str
    events: tuple[Event, ...]
    colluder_events: tuple[Event, ...] | None = None
    delta: float = 1e-5
    purpose: Literal["training", "evaluation"] = "training"
    name: str = ""
    unit: Unit = "record"
    statement: str = ""
    order_attempt: int = 0
    config: str = ""

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
            raise ConfigError("a charge has a wrong delta or purpose", "see `Charge`")

    def seen_by(self, view: View) -> tuple[Event, ...]:
        """Return the events in the eyes of one kind of observer."""
        if view == "sums" or self.colluder_events is None:
            return self.events
        return self.colluder_events


class BudgetGuard:
    """Decides whether planned events fit under a ceiling.

    What was once found to fit stays fitting for every part of it, because leaving events
    out never raises epsilon; so the rounds of a run that was checked as a whole cost nothing.
    """

    def __init__(self) -> None:
        self._known: list[tuple[Folded, float, float]] = []

    def require(
        self,
        spent: Sequence[Event],
        planned: Sequence[Event],
        ceiling: Ceiling,
        what: str,
        view: View = "sums",
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
        view : {"sums", "colluders"}
            In whose eyes the events happened.

        Raises
        ------
        BudgetError
            If they exceed it; the message says how much is spent, asked for and allowed. Also if
            a coordinator could exceed twice the ceiling, and 2, by choosing each charge by what it
            has seen; only unusual runs come near that.
        """
        limit, delta = ceiling.limit(view), ceiling.delta
        if math.isinf(limit):
            return
        total = fold([*spent, *planned])
        if any((limit, delta) == known[1:] and total.within(known[0]) for known in self._known):
            return
        after = epsilon([*spent, *planned], delta).value
        if after > limit:
            before = epsilon(spent, delta).value
            raise _refusal(before, after, limit, delta, what, view)
        chosen, most = ceiling.adaptive(total, view), ceiling.adaptive_limit(view)
        if chosen > most:
            raise _adaptive_refusal(chosen, most, what)
        self._known = [*self._known[-15:], (total, limit, delta)]


def _refusal(
    before: float, after: float, limit: float, delta: float, what: str, view: View
) -> BudgetError:
    eyes = "" if view == "sums" else " for everyone else colluding"
    return BudgetError(
        f"{what} would bring the site's account to epsilon {_shown(after)}{eyes}; its ceiling is "
        f"{_shown(limit)} at delta {delta:g}, of which {_shown(before)} is spent and "
        f"{_shown(max(0.0, limit - before))} is left",
        "plan the run with a smaller privacy.epsilon, which fewer rounds alone do not change "
        "(fedllm privacy plan); only the site can raise its ceiling, in site.toml",
    )


def _adaptive_refusal(chosen: float, limit: float, what: str) -> BudgetError:
    return BudgetError(
        f"{what} would let a coordinator that chooses each charge by what it has seen bring the "
        f"site's account to epsilon {_shown(chosen)}; the most is {_shown(limit)}, twice the "
        "ceiling and 2 more",
        "plan the run with larger batches or more steps, and so with more noise: rare samples "
        "under little noise cost most here (docs/privacy-accounting.md)",
    )


def _shown(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.4g}"
