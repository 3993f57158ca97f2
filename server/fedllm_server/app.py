"""The ServerApp, and the sites as it sees them through Flower's grid, here or far away."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedllm.errors import FedllmError, PeerError
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
from fedllm.federation.protocol.wire import Wire
from fedllm.federation.transport.flower import Presence, exchange, from_content, to_content

Answer = TypeVar("Answer", bound=Wire)


class _Contents(Mapping[int, RecordDict]):
    """What each node is sent, made when it is: with many sites all of it at once is gigabytes."""

    def __init__(self, names: Mapping[int, str], make: Callable[[str], RecordDict]) -> None:
        self._names = names
        self._make = make

    def __getitem__(self, node: int) -> RecordDict:
        return self._make(self._names[node])

    def __iter__(self) -> Iterator[int]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class GridSites:
    """Asks sites through a Flower grid; knows which node is which site after `admit`.

    Parameters
    ----------
    grid : Grid
        Flower's.
    nodes : mapping of str to int
        Ids of the nodes that are asked to join, and what each is called until then.
    timeout_s : float
        How long one exchange waits.
    presence : Presence, optional
        Who is connected, where nodes come and go.
    """

    def __init__(
        self,
        grid: Grid,
        nodes: Mapping[str, int],
        timeout_s: float,
        presence: Presence | None = None,
    ) -> None:
        self._grid = grid
        self._nodes = dict(nodes)
        self._timeout_s = timeout_s
        self._presence = presence
        self._node_of: dict[str, int] = {}

    def admit(self, node: str, name: str) -> None:
        """Remember which site a node is."""
        self._node_of[name] = self._nodes[node]

    def changed(self) -> bool:
        """Tell whether sites came or went since the last `join`: in one process none do."""
        return False

    def join(self, request: Join) -> Iterator[tuple[str, Joined | FedllmError]]:
        """Ask every node whether it takes part; yields the node and its answer."""
        self._node_of.clear()
        yield from self._ask("query.join", request, self._nodes, Joined)

    def draw(
        self, request: Draw, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Drawn | FedllmError]]:
        """Let the named sites draw their neighbours; yields each of them once."""
        yield from self._ask("query.draw", request, self._known(names), Drawn)

    def train(
        self, order: Callable[[str], Train], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Trained | FedllmError]]:
        """Order each of the named sites to train; yields each of them once."""
        yield from self._ask("train.round", order, self._known(names), Trained)

    def ready(
        self, request: Ready, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Readied | FedllmError]]:
        """Ask the named sites whether they are still there; yields each of them once."""
        yield from self._ask("query.ready", request, self._known(names), Readied)

    def settle(
        self, question: Callable[[str], Settle], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Settled | FedllmError]]:
        """Ask each of the named sites to agree on the survivors; yields each of them once."""
        yield from self._ask("query.settle", question, self._known(names), Settled)

    def unmask(
        self, question: Callable[[str], Unmask], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Unmasked | FedllmError]]:
        """Ask each of the named sites to take its masks off; yields each of them once."""
        yield from self._ask("query.unmask", question, self._known(names), Unmasked)

    def recover(
        self, question: Callable[[str], Recover], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Recovered | FedllmError]]:
        """Ask each of the named sites for its shares of what others left; yields each once."""
        yield from self._ask("query.recover", question, self._known(names), Recovered)

    def _known(self, names: tuple[str, ...]) -> dict[str, int]:
        for name in names:
            if name not in self._node_of:
                raise PeerError(f"'{name}' is not connected any more", "see the site's own log")
        return {name: self._node_of[name] for name in names}

    def _ask(
        self,
        kind: str,
        request: Wire | Callable[[str], Wire],
        nodes: dict[str, int],
        answer: type[Answer],
    ) -> Iterator[tuple[str, Answer | FedllmError]]:
        names = {node: name for name, node in nodes.items()}
        if isinstance(request, Wire):
            # The same for all is written once.
            written = request.to_wire()
            contents = _Contents(names, lambda _: to_content(*written))
        else:
            contents = _Contents(names, lambda name: to_content(*request(name).to_wire()))
        for reply in exchange(self._grid, kind, contents, self._timeout_s, self._presence):
            name = names[reply.node]
            if reply.content is None:
                yield name, PeerError(f"{name}: {reply.failure}", reply.remedy)
                continue
            try:
                yield name, answer.from_wire(*from_content(reply.content))
            except PeerError as error:
                yield name, error


def make_server_app(work: Callable[[Grid], None]) -> ServerApp:
    """Return a ServerApp that does ``work`` with the grid it is given."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        work(grid)

    return app
