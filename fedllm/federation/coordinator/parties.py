"""The other parties as the coordinator reaches them, whatever carries the messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from fedllm.errors import FedllmError
from fedllm.federation.protocol.messages import (
    Draw,
    Drawn,
    Join,
    Joined,
    OpenRound,
    OpenSum,
    Readied,
    Ready,
    Recover,
    Recovered,
    RoundOpened,
    Settle,
    Settled,
    SumOpened,
    Train,
    Trained,
    Unmask,
    Unmasked,
)


class Sites(Protocol):
    """A way to ask sites and hear their answers as they come."""

    def join(self, request: Join) -> Iterator[tuple[str, Joined | FedllmError]]:
        """Ask every connected site; the first part of an answer says which node it is."""
        ...

    def draw(
        self, request: Draw, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Drawn | FedllmError]]:
        """Let the named sites draw their neighbours; yields each of them once."""
        ...

    def train(
        self, order: Callable[[str], Train], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Trained | FedllmError]]:
        """Order each of the named sites to train; yields each of them once."""
        ...

    def ready(
        self, request: Ready, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Readied | FedllmError]]:
        """Ask the named sites whether they are still there; yields each of them once."""
        ...

    def settle(
        self, question: Callable[[str], Settle], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Settled | FedllmError]]:
        """Ask each of the named sites to agree on the survivors; yields each of them once."""
        ...

    def unmask(
        self, question: Callable[[str], Unmask], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Unmasked | FedllmError]]:
        """Ask each of the named sites to take its masks off; yields each of them once."""
        ...

    def recover(
        self, question: Callable[[str], Recover], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Recovered | FedllmError]]:
        """Ask each of the named sites for its shares of what others left; yields each once."""
        ...

    def admit(self, node: str, name: str) -> None:
        """Remember which site a node is."""
        ...

    def changed(self) -> bool:
        """Tell whether sites came or went since the last `join`."""
        ...


class KeyAuthority(Protocol):
    """A way to ask the key authority."""

    def open_round(self, request: OpenRound) -> RoundOpened:
        """Ask for a round's key."""
        ...

    def open_sum(self, request: OpenSum) -> SumOpened:
        """Ask for a round's sum."""
        ...
