"""Sites whose answers are counted for whoever watches, in every exchange of a round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from fedllm.errors import FedllmError
from fedllm.federation.coordinator.parties import Sites
from fedllm.federation.protocol.messages import (
    Draw,
    Drawn,
    Join,
    Joined,
    Readied,
    Ready,
    Recover,
    Recovered,
    Settle,
    Settled,
    Train,
    Trained,
    Unmask,
    Unmasked,
)
from fedllm.federation.protocol.round_statement import Purpose
from fedllm.runs.observer import Observer

Answer = TypeVar("Answer")
Answers = Iterator[tuple[str, Answer | FedllmError]]


class WatchedSites:
    """Passes everything on, and tells an observer how many sites have answered.

    Parameters
    ----------
    sites : Sites
        Who is asked.
    observer : Observer
        Hears each answer of each exchange.
    round : int
        Which round it is for.
    purpose : {"update", "evaluation"}
        What the round is for.
    """

    def __init__(
        self, sites: Sites, observer: Observer, round: int, purpose: Purpose = "update"
    ) -> None:
        self._sites = sites
        self._observer = observer
        self._round = round
        self._purpose = purpose

    def _counted(self, answers: Answers[Answer], phase: str, asked: int | None) -> Answers[Answer]:
        self._observer.answering(self._round, phase, 0, asked)
        for answered, answer in enumerate(answers, 1):
            self._observer.answering(self._round, phase, answered, asked)
            yield answer

    def join(self, request: Join) -> Answers[Joined]:
        """Ask every connected site; nobody here knows how many there are."""
        return self._counted(self._sites.join(request), "join", None)

    def draw(self, request: Draw, names: tuple[str, ...]) -> Answers[Drawn]:
        """Let the named sites draw their neighbours."""
        return self._counted(self._sites.draw(request, names), "draw", len(names))

    def train(self, order: Callable[[str], Train], names: tuple[str, ...]) -> Answers[Trained]:
        """Order each of the named sites to train, or to evaluate."""
        phase = "train" if self._purpose == "update" else "evaluate"
        return self._counted(self._sites.train(order, names), phase, len(names))

    def ready(self, request: Ready, names: tuple[str, ...]) -> Answers[Readied]:
        """Ask the named sites whether they are still there."""
        return self._counted(self._sites.ready(request, names), "ready", len(names))

    def settle(self, question: Callable[[str], Settle], names: tuple[str, ...]) -> Answers[Settled]:
        """Ask each of the named sites to agree on the survivors."""
        return self._counted(self._sites.settle(question, names), "settle", len(names))

    def unmask(
        self, question: Callable[[str], Unmask], names: tuple[str, ...]
    ) -> Answers[Unmasked]:
        """Ask each of the named sites to take its masks off."""
        return self._counted(self._sites.unmask(question, names), "unmask", len(names))

    def recover(
        self, question: Callable[[str], Recover], names: tuple[str, ...]
    ) -> Answers[Recovered]:
        """Ask each of the named sites for its shares of what others left."""
        return self._counted(self._sites.recover(question, names), "recover", len(names))

    def admit(self, node: str, name: str) -> None:
        """Remember which site a node is."""
        self._sites.admit(node, name)

    def changed(self) -> bool:
        """Tell whether sites came or went since the last `join`."""
        return self._sites.changed()
