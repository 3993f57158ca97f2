"""What the coordinator's own journal says of its runs and of who comes and goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fedllm.errors import one_line
from fedllm.federation.transport.superlink import NodeState
from fedllm.identity.roster import Roster
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Observer, Start
from fedllm.runs.pace import Pace
from fedllm.runs.terminal import describe_answers, describe_round, describe_start

_SILENCE_S = 60.0


def party(name: str, roster: Roster) -> str:
    """Return how a party of the roster is spoken of."""
    return "the key authority" if name == "authority" else f"site {roster.shown(name)}"


class JournalObserver(Observer):
    """Tells the journal what happens in a run, a line each; not each site's answer.

    While sites answer, one line each time that nothing was told for a minute.

    Parameters
    ----------
    run : str
        The run's name.
    say : callable
        Takes one line; the service's standard error, which systemd keeps.
    clock : callable, optional
        Tells the seconds.
    """

    def __init__(
        self,
        run: str,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pace = Pace(_SILENCE_S, clock)
        self._run = run
        self._say = say
        self._rounds = 0

    def started(self, start: Start) -> None:
        """Say how long the run is and with how many sites it begins."""
        self._rounds = start.total
        self._line(describe_start(start))

    def note(self, text: str) -> None:
        """Say the message."""
        self._line(text)

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Say how far a part of a round is, if nothing was said for a while."""
        if self._pace.due:
            self._line(describe_answers(round, phase, answered, asked))

    def finished_round(self, report: RoundReport) -> None:
        """Say the round's figures."""
        self._line(describe_round(report, self._rounds))

    def _line(self, text: str) -> None:
        # Words of other parties may stand in it.
        self._say(one_line(f"run '{self._run}': {text}"))
        self._pace.told()


class Comings:
    """Says which parties came and which were lost since the last look."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._since: dict[str, str | None] = {}

    def look(self, nodes: Sequence[NodeState], roster: Roster) -> None:
        """Compare who is connected with who was."""
        there = {node.name: node.since for node in nodes if node.online}
        for name in sorted(self._since.keys() - there.keys()):
            self._say(f"{party(name, roster)} is not connected any more")
        for name, since in sorted(there.items()):
            if name not in self._since:
                self._say(f"{party(name, roster)} is connected")
            elif since != self._since[name]:
                self._say(f"{party(name, roster)} has connected anew")
        self._since = there
