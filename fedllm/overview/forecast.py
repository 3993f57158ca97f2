"""How much longer a budget lasts, by the rule that refuses rounds and by the ledger alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedllm.errors import BudgetError
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import Event
from fedllm.privacy.ledger.budget import VIEWS, BudgetGuard, Ceiling
from fedllm.privacy.ledger.charges import Reservation
from fedllm.privacy.ledger.state import LedgerState

MOST_ROUNDS = 1000
_RECENT = 10

Kind = Literal["rounds", "nothing charged", "carried only", "unlimited", "no ceiling"]


@dataclass(frozen=True)
class Forecast:
    """How many rounds still fit, if each costs what the last one did.

    Attributes
    ----------
    kind : str
        "rounds", or why nobody can tell: nothing was charged, only what was carried over is known,
        the spending has no limit any more, or the policy sets none.
    rounds : int, optional
        How many fit, with kind "rounds".
    more : bool
        Whether it is more than ``rounds``, which were all that were tried.
    like_round : int
        The round that the others are supposed to be like.
    like_run : str
        Its run, as people call it.
    alike : bool
        Whether the last rounds all cost the same.
    """

    kind: Kind
    rounds: int | None = None
    more: bool = False
    like_round: int = 0
    like_run: str = ""
    alike: bool = True


class Forecaster:
    """Counts how many rounds fit; the next look begins with what the last one found."""

    def __init__(self) -> None:
        self._last: tuple[object, Forecast] | None = None
        self._guess = 1

    def look(self, state: LedgerState, account: str, ceiling: Ceiling) -> Forecast:
        """Say how many rounds like the account's last one its ceiling allows."""
        charges = [one for one in state.charges(account) if isinstance(one, Reservation)]
        rounds = [one for one in charges if one.purpose == "training"]
        asked = (account, ceiling, len(state.carried), tuple(one.sequence for one in charges))
        if self._last is None or self._last[0] != asked:
            self._last = asked, self._forecast(state, account, ceiling, rounds)
        return self._last[1]

    def _forecast(
        self,
        state: LedgerState,
        account: str,
        ceiling: Ceiling,
        rounds: Sequence[Reservation],
    ) -> Forecast:
        if math.isinf(ceiling.epsilon):
            return Forecast("no ceiling")
        if not rounds:
            return Forecast("carried only" if state.carried else "nothing charged")
        last = rounds[-1]
        if math.isinf(epsilon(state.spent(account, last.unit), ceiling.delta).value):
            return Forecast("unlimited")
        found = self._count(_Room(state, account, ceiling, last))
        alike = {one.events for one in rounds[-_RECENT:]} == {last.events}
        return Forecast(
            "rounds", found, found >= MOST_ROUNDS, last.round, last.name or last.run, alike
        )

    def _count(self, room: _Room) -> int:
        """Return the largest number of rounds that fits, `MOST_ROUNDS` at most."""
        low, step = 0, 1
        # Mostly one round less fits than at the last look.
        for guess in (self._guess - 1, self._guess):
            if low < guess <= MOST_ROUNDS and room.fits(guess):
                low = guess
        high = low + step
        while high <= MOST_ROUNDS and room.fits(high):
            low, step = high, 2 * step
            high = low + step
        high = min(high, MOST_ROUNDS + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if room.fits(middle) else (low, middle)
        self._guess = low
        return low


class _Room:
    """What a ceiling leaves to an account, by the guard that refuses charges."""

    def __init__(
        self, state: LedgerState, account: str, ceiling: Ceiling, last: Reservation
    ) -> None:
        self._ceiling = ceiling
        self._spent = {view: state.spent(account, last.unit, view) for view in VIEWS}
        self._one: dict[str, Sequence[Event]] = {view: last.seen_by(view) for view in VIEWS}
        self._guard = BudgetGuard()

    def fits(self, rounds: int) -> bool:
        """Whether so many more rounds like the last would all be charged."""
        for view in VIEWS:
            planned = [event for event in self._one[view] for _ in range(rounds)]
            try:
                self._guard.require(self._spent[view], planned, self._ceiling, "a forecast", view)
            except BudgetError:
                return False
        return True
