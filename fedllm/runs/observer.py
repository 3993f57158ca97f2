"""What a run tells while it goes on: one way to listen, for federated runs and pretraining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedllm.config import RunConfig
from fedllm.config.section import Section
from fedllm.runs.metrics import RoundReport


@dataclass(frozen=True, slots=True)
class Start:
    """A run that begins or goes on.

    Attributes
    ----------
    run : str
        A federated run's random identifier; the name of a pretraining run.
    config : RunConfig or PretrainConfig
        What it was asked for. Its locations may hold a password.
    unit : {"rounds", "steps"}
        What is counted.
    total, done : int
        How many there are, and how many are done already.
    sites : int
        Sites that take part; 0 in pretraining, and where nothing is left to train.
    titles : mapping of str to str
        Names of sites for people, for those that have one.
    """

    run: str
    config: Section
    unit: Literal["rounds", "steps"]
    total: int
    done: int = 0
    sites: int = 0
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def private(self) -> bool:
        """Whether the run promises differential privacy."""
        return isinstance(self.config, RunConfig) and self.config.private


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where pretraining stands.

    Attributes
    ----------
    step, steps, tokens : int
        Steps so far, of how many; tokens so far.
    loss : float
        Mean per target since the last report, in nats.
    tokens_per_s, seconds_left : float
        Pace, and what is left at it.
    evaluation : dict of str to float, optional
        Held-out measures, where they were taken.
    """

    step: int
    steps: int
    tokens: int
    loss: float
    tokens_per_s: float
    seconds_left: float
    evaluation: dict[str, float] | None = None


class Observer:
    """Hears what happens in a run; each method does nothing unless it is overridden."""

    def started(self, start: Start) -> None:
        """Hear that a run begins or goes on."""

    def note(self, text: str) -> None:
        """Hear a message for the person who watches."""

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Hear that one site's update is in the sum."""

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Hear how many sites have answered in a part of a round, at its start and at each answer.

        Parameters
        ----------
        round : int
            Which round.
        phase : str
            "join", "draw", "train", "evaluate", "ready", "settle", "unmask" or "recover".
        answered : int
            Answers so far, refusals and failures among them.
        asked : int, optional
            Sites that were asked, where that is known.
        """

    def finished_round(self, report: RoundReport) -> None:
        """Hear the figures of a finished round."""

    def advanced(self, report: StepReport) -> None:
        """Hear how far pretraining is."""

    def close(self) -> None:
        """Hear that the run is over, well or not."""


@dataclass
class Observers(Observer):
    """Several observers as one. One that fails hears no more, and the run goes on.

    Attributes
    ----------
    listening : list of Observer
        Those that still hear.
    """

    listening: list[Observer] = field(default_factory=list)

    @classmethod
    def of(cls, *groups: Sequence[Observer]) -> Observers:
        """Return all observers of some groups as one."""
        return cls([observer for group in groups for observer in group])

    def started(self, start: Start) -> None:
        """Tell all."""
        self._tell(lambda one: one.started(start))

    def note(self, text: str) -> None:
        """Tell all."""
        self._tell(lambda one: one.note(text))

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Tell all."""
        self._tell(lambda one: one.site_answered(round, site, answered, sites))

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Tell all."""
        self._tell(lambda one: one.answering(round, phase, answered, asked))

    def finished_round(self, report: RoundReport) -> None:
        """Tell all."""
        self._tell(lambda one: one.finished_round(report))

    def advanced(self, report: StepReport) -> None:
        """Tell all."""
        self._tell(lambda one: one.advanced(report))

    def close(self) -> None:
        """Tell all."""
        self._tell(lambda one: one.close())

    def _tell(self, say: Callable[[Observer], None]) -> None:
        for one in list(self.listening):
            if not self._hears(one):
                # It failed over the note on another one that failed.
                continue
            try:
                say(one)
            except Exception as error:
                # A watcher less is no reason to lose a run whose privacy is spent.
                self.listening = [other for other in self.listening if other is not one]
                words = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.note(f"{type(one).__name__} hears no more of this run: {words}")

    def _hears(self, one: Observer) -> bool:
        return any(other is one for other in self.listening)
