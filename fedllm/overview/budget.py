"""A site's privacy budget as its ledger has it: spent, reserved, left, and how it came to that.

Every epsilon is the ledger's own: its events, composed by its accountant, under the policy's
ceiling. Nothing else is counted, and nothing is kept of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedllm.canonical import read_object
from fedllm.config.site_policy import BudgetSection
from fedllm.dashboard.files import stamp
from fedllm.overview.forecast import Forecast, Forecaster
from fedllm.privacy.accounting.accountants import epsilon, upper_bound
from fedllm.privacy.accounting.events import fold
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.budget import Ceiling
from fedllm.privacy.ledger.charges import Reservation
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.exports import stored_entries
from fedllm.privacy.ledger.fingerprints import Unit
from fedllm.privacy.ledger.state import LedgerState

# Of the drawing; each costs an accountant some tenths of a second once.
_MOST_POINTS = 33


@dataclass(frozen=True)
class Charge:
    """A round or an evaluation that the ledger was charged for.

    Attributes
    ----------
    number : int
        Its entry.
    when : str
        When, to the minute, as the ledger notes it.
    run, name : str
        The run's identifier, and what people call it.
    round, attempt : int
        Of the run, and of the round.
    purpose : str
        "training" or "evaluation".
    released : bool
        Whether a result was about to leave; else it was charged and nothing came of it (yet).
    spent : float, optional
        What the account had spent with it; None where that was not worked out.
    """

    number: int
    when: str
    run: str
    name: str
    round: int
    attempt: int
    purpose: str
    released: bool
    spent: float | None


@dataclass(frozen=True)
class Budget:
    """What an account has spent, and what is left.

    Attributes
    ----------
    account : str
        As the policy declares it; empty: all of the site's records.
    unit : {"record", "person"}
        What is protected.
    ceiling : Ceiling
        The policy's.
    spent : float
        Epsilon of all that was charged.
    released : float
        Epsilon of that alone of which a result was about to leave.
    colluders : float
        As ``spent``, in the eyes of everyone else colluding.
    charges : tuple of Charge
        In order.
    carried : int
        Charges of earlier ledgers, which count.
    forecast : Forecast
        How much longer the budget lasts.
    head : Head
        The ledger's last entry.
    """

    account: str
    unit: Unit
    ceiling: Ceiling
    spent: float
    released: float
    colluders: float
    charges: tuple[Charge, ...]
    carried: int
    forecast: Forecast
    head: Head

    @property
    def left(self) -> float:
        """Epsilon below the ceiling."""
        return max(0.0, self.ceiling.epsilon - self.spent)

    @property
    def reserved(self) -> float:
        """What charges without a result add to what those with one cost."""
        if math.isinf(self.spent):
            return 0.0 if math.isinf(self.released) else math.inf
        return max(0.0, self.spent - self.released)

    @property
    def is_whole(self) -> bool:
        """Whether it was worked out of as many charges as are drawn, what was spent with them."""
        known = sum(charge.spent is not None for charge in self.charges)
        return known >= min(len(self.charges), _MOST_POINTS)

    @property
    def open(self) -> int:
        """Charges without a result."""
        return sum(not charge.released for charge in self.charges)


def ceiling_of(budget: BudgetSection) -> Ceiling:
    """Return the ceiling that a policy sets."""
    return Ceiling(budget.epsilon, budget.delta, budget.colluders_epsilon or math.inf)


class BudgetReader:
    """Reads a ledger again and again, and works out each figure once.

    Parameters
    ----------
    path : Path
        The ledger.
    public_key : bytes
        The site's, from the signed roster.
    patience_s : float, optional
        For how long a look goes on working out what the account had spent earlier; later looks go
        on from there.
    clock : callable, optional
        Gives seconds.
    """

    def __init__(
        self,
        path: Path,
        public_key: bytes,
        patience_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._key = path, public_key
        self._patience_s, self._clock = patience_s, clock
        self._forecaster = Forecaster()
        self._known: dict[tuple[str, float, int], float] = {}
        self._last: tuple[object, Budget] | None = None

    def read(self, section: BudgetSection, anchor: Head | None = None) -> Budget:
        """Check the whole ledger, where it changed, and say what the policy's account has spent.

        Parameters
        ----------
        anchor : Head, optional
            The entry that the site remembers: a ledger without it is an older copy.

        Raises
        ------
        TamperedError, LedgerError
            If it does not hold, or cannot be read.
        """
        asked = stamp(self._path), section, anchor
        if self._last is None or self._last[0] != asked or not self._last[1].is_whole:
            # A ledger that does not hold any more has no figures.
            self._last = None
            self._last = asked, self._read(section, anchor)
        return self._last[1]

    def _read(self, section: BudgetSection, anchor: Head | None) -> Budget:
        state = read_state(self._path, self._key, () if anchor is None else (anchor,))
        times = {raw.sequence: _time(raw.content) for raw in stored_entries(self._path)[0]}
        name, ceiling = section.account or "", ceiling_of(section)
        unit, delta = state.unit(name), ceiling.delta
        charges = [one for one in state.charges(name) if isinstance(one, Reservation)]
        gone = {charge.sequence for charge in charges} - set(state.committed)
        released = [
            event
            for one in state.charges(name)
            if one.sequence not in gone
            for event in one.seen_by("sums")
        ]
        if state.head is None:
            raise RuntimeError("a ledger that was read has entries")
        mixed = len({one.unit for one in state.charges(name)}) > 1
        spent = epsilon(state.spent(name, unit), delta).value
        totals = self._totals(state, name, unit, delta, charges)
        return Budget(
            name,
            unit,
            ceiling,
            spent,
            spent if mixed else epsilon(released, delta).value,
            epsilon(state.spent(name, unit, "colluders"), delta).value,
            tuple(_charge(one, state, times, totals) for one in charges),
            sum(len(one.events) for one in state.carried),
            self._forecaster.look(state, name, ceiling),
            state.head,
        )

    def _totals(
        self,
        state: LedgerState,
        name: str,
        unit: Unit,
        delta: float,
        charges: Sequence[Reservation],
    ) -> dict[int, float]:
        """Return what was spent with some of the charges, the last and the first among them."""
        end, found = self._clock() + self._patience_s, dict[int, float]()
        for place in _spread(len(charges)):
            sequence = charges[place].sequence
            key = (name, delta, sequence)
            if key not in self._known:
                if found and self._clock() > end:
                    continue
                events = fold(state.spent(name, unit, until=sequence))
                self._known[key] = upper_bound(events, delta)
            found[sequence] = self._known[key]
        return found


def _spread(count: int) -> Iterator[int]:
    """Yield places in a row, first those that say most of it: its ends, then what lies between."""
    if count <= 0:
        return
    step, seen = 1, set[int]()
    while step < _MOST_POINTS and len(seen) < min(count, _MOST_POINTS):
        for part in range(step, -1, -1):
            place = round(part * (count - 1) / step)
            if place not in seen:
                seen.add(place)
                yield place
        step *= 2


def _charge(
    one: Reservation, state: LedgerState, times: dict[int, str], totals: dict[int, float]
) -> Charge:
    return Charge(
        one.sequence,
        times.get(one.sequence, ""),
        one.run,
        one.name,
        one.round,
        one.attempt,
        one.purpose,
        one.sequence in state.committed,
        totals.get(one.sequence),
    )


def _time(content: bytes) -> str:
    return str(read_object(content)["time"])
