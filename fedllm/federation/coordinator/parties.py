"""The other parties as the coordinator reaches them, whatever carries the messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from fedllm.errors import FedllmError
from fedllm.federation.protocol.messages import (
    Join,
    Joined,
    OpenRound,
    OpenSum,
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

    def train(
        self, request: Train, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Trained | FedllmError]]:
        """Order the named sites to train; yields each of them once."""
        ...

    def settle(
        self, request: Settle, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Settled | FedllmError]]:
        """Ask the named sites to agree on the survivors; yields each of them once."""
        ...

    def unmask(
        self, request: Unmask, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Unmasked | FedllmError]]:
        """Ask the named sites to take their masks off; yields each of them once."""
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
