"""The other parties of a deployment, as the coordinator reaches them through its SuperLink."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from flwr.serverapp import Grid

from fedllm.errors import FedllmError, PeerError
from fedllm.federation.coordinator.answers import some_of
from fedllm.federation.protocol.messages import (
    Join,
    Joined,
    OpenRound,
    OpenSum,
    RoundOpened,
    SumOpened,
)
from fedllm.federation.protocol.wire import Wire
from fedllm.federation.transport.flower import GridPresence, exchange, from_content, to_content
from fedllm.runs.pace import Pace
from fedllm_server.app import GridSites

Answer = TypeVar("Answer", bound=Wire)
_POLL_S, _REMIND_S = 0.3, 60.0
_CHECK_SITES = (
    "at those, see whether `fedllm client start` runs and what `fedllm client check` says"
)
_CHECK_AUTHORITY = "see whether `fedllm authority start` runs, and what its log says"


class RemoteSites(GridSites):
    """The sites that are connected now; each node's key says which site it is.

    Parameters
    ----------
    grid : Grid
        Flower's.
    presence : GridPresence
        Who is connected.
    keys : mapping of str to bytes
        Node key (PEM) of each site in the roster.
    min_sites : int
        `join` waits until so many are connected.
    timeout_s : float
        How long it waits, and each exchange.
    say : callable
        Hears what is being waited for, again every minute.
    shown : callable, optional
        Returns how a site is called for people; its name when left out.
    """

    def __init__(
        self,
        grid: Grid,
        presence: GridPresence,
        keys: Mapping[str, bytes],
        min_sites: int,
        timeout_s: float,
        say: Callable[[str], None],
        shown: Callable[[str], str] = str,
    ) -> None:
        super().__init__(grid, {}, timeout_s, presence)
        self._there = presence
        self._keys = dict(keys)
        self._min_sites = min_sites
        self._say = say
        self._shown = shown
        self._asked: dict[int, str | None] = {}

    def changed(self) -> bool:
        """Tell whether a site of the cohort left, or one came that was not asked yet."""
        now = self._connected()
        left = any(node not in now.values() for node in self._node_of.values())
        return left or any(self._there.mark(node) != self._asked.get(node) for node in now.values())

    def join(self, request: Join) -> Iterator[tuple[str, Joined | FedllmError]]:
        """Wait for enough sites, then ask all that are there; yields names and answers."""
        self._nodes = self._gathered()
        self._asked = {node: self._there.mark(node) for node in self._nodes.values()}
        for name, answer in super().join(request):
            member = None if isinstance(answer, FedllmError) else answer.header.member
            if member is not None and member.name != name:
                yield name, PeerError(f"the node of '{name}' says that it is '{member.name}'")
            else:
                yield name, answer

    def _gathered(self) -> dict[str, int]:
        deadline = time.monotonic() + self._timeout_s
        said, pace = "", Pace(_REMIND_S, time.monotonic)
        while True:
            there = self._connected()
            if len(there) >= self._min_sites:
                return there
            missing = some_of([self._shown(name) for name in sorted(set(self._keys) - set(there))])
            words = (
                f"{len(there)} sites are connected, {self._min_sites} are needed; "
                f"not there: {missing}"
            )
            if time.monotonic() > deadline:
                raise PeerError(words, "start the others, then resume the run")
            if words != said or pace.due:
                left = max(0.0, deadline - time.monotonic()) / 60
                self._say(f"waiting: {words}; {_CHECK_SITES}, {left:.0f} minutes are left")
                said = words
                pace.told()
            time.sleep(_POLL_S)

    def _connected(self) -> dict[str, int]:
        nodes = self._there.keys()
        return {name: nodes[key] for name, key in self._keys.items() if key in nodes}


class RemoteAuthority:
    """The key authority at the other end of the grid.

    Parameters
    ----------
    grid, presence
        As for `RemoteSites`.
    key : bytes
        Its node key (PEM).
    timeout_s : float
        How long to wait for it to be connected, and for an answer.
    say : callable
        Hears what is being waited for, again every minute.
    """

    def __init__(
        self,
        grid: Grid,
        presence: GridPresence,
        key: bytes,
        timeout_s: float,
        say: Callable[[str], None],
    ) -> None:
        self._grid = grid
        self._presence = presence
        self._key = key
        self._timeout_s = timeout_s
        self._say = say

    def open_round(self, request: OpenRound) -> RoundOpened:
        """Ask for a round's key.

        Raises
        ------
        PeerError
            If there is no answer, or none that can be read.
        """
        return self._ask("query.open_round", request, RoundOpened)

    def open_sum(self, request: OpenSum) -> SumOpened:
        """Ask for a round's sum; errors as in `open_round`."""
        return self._ask("query.open_sum", request, SumOpened)

    def _ask(self, kind: str, request: Wire, answer: type[Answer]) -> Answer:
        contents = {self._node(): to_content(*request.to_wire())}
        (reply,) = exchange(self._grid, kind, contents, self._timeout_s, self._presence)
        if reply.content is None:
            raise PeerError(f"the key authority: {reply.failure}", reply.remedy)
        return answer.from_wire(*from_content(reply.content))

    def _node(self) -> int:
        deadline = time.monotonic() + self._timeout_s
        pace: Pace | None = None
        while True:
            node = self._presence.keys().get(self._key)
            if node is not None:
                return node
            if time.monotonic() > deadline:
                raise PeerError("the key authority is not connected", "start it, then resume")
            if pace is None or pace.due:
                self._say(f"waiting: the key authority is not connected; {_CHECK_AUTHORITY}")
                pace = Pace(_REMIND_S, time.monotonic)
            time.sleep(_POLL_S)
