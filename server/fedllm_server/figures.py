"""What a simulation may know of its sites and a coordinator may not: timings and epsilons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedllm.canonical import read_json
from fedllm.config import RunConfig
from fedllm.identity.keys import Identity
from fedllm.privacy.accounting.accountants import epsilon, upper_bound
from fedllm.privacy.accounting.events import Event, fold
from fedllm.privacy.ledger.ledger import Ledger
from fedllm_client.simulated import SimulatedSites


class SiteFigures:
    """Reads the logs and ledgers of simulated sites after each round.

    Parameters
    ----------
    source : SimulatedSites
        Where they are.
    names : tuple of str
        The sites.
    config : RunConfig
        Whose delta the epsilons are computed at.
    """

    def __init__(self, source: SimulatedSites, names: tuple[str, ...], config: RunConfig) -> None:
        self._source = source
        self._names = names
        self._config = config
        self._read: dict[str, int] = {}
        self._ledgers: dict[str, Ledger] = {}

    def __call__(self, run: str, number: int) -> tuple[dict[str, float], dict[str, float]]:
        """Return seconds by phase, summed over sites, and the epsilon spent at each site."""
        seconds = {"train": 0.0, "encrypt": 0.0}
        for name in self._names:
            for line in self._new_lines(self._source.files(name).log):
                if line.get("run") == run and line.get("round") == number:
                    for phase, value in line["seconds"].items():
                        seconds[phase] += value
        return seconds, self._epsilons(run, number)

    def against_colluders(self, run: str) -> float | None:
        """Return the largest epsilon of a run against all others together; None if none is."""
        if not self._config.private:
            return None
        delta = self._config.privacy.delta
        spent = [
            epsilon(self._ledger(name).events_of_run(run, view="colluders"), delta).value
            for name in self._names
            if self._source.files(name).ledger.exists()
        ]
        return max(spent, default=None)

    def _epsilons(self, run: str, number: int) -> dict[str, float]:
        if not self._config.private:
            return {}
        delta = self._config.privacy.delta
        # The cross-checks of the last figure would cost more than a small model's round.
        cost = self._exact if number == self._config.rounds.count else self._quick
        return {
            name: cost(self._ledger(name).events_of_run(run), delta)
            for name in self._names
            if self._source.files(name).ledger.exists()
        }

    @staticmethod
    def _exact(events: list[Event], delta: float) -> float:
        return epsilon(events, delta).value

    @staticmethod
    def _quick(events: list[Event], delta: float) -> float:
        return upper_bound(fold(events), delta)

    def _ledger(self, name: str) -> Ledger:
        if name not in self._ledgers:
            identity = Identity.load(name, self._source.keys(name))
            self._ledgers[name] = Ledger.open(self._source.files(name).ledger, name, identity)
        return self._ledgers[name]

    def _new_lines(self, path: Path) -> list[dict[str, Any]]:
        if not path.exists():
            return []
        with path.open("rb") as stream:
            stream.seek(self._read.get(path.name, 0))
            content = stream.read()
        self._read[path.name] = self._read.get(path.name, 0) + len(content)
        return [line for text in content.splitlines() if (line := _line(text))]


def _line(text: bytes) -> dict[str, Any]:
    try:
        value = read_json(text, nan=True)
    except ValueError:
        # What a crash cut off: seconds of a round that is trained again.
        return {}
    return value if isinstance(value, dict) else {}
