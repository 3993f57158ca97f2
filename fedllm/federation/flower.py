"""The bridge to Flower: messages in its records, its grids, its engines.

The only file that imports Flower's private modules; a new version of Flower is met here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

# Before the first import of flwr or ray: no usage statistics leave a hospital's network.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedllm.errors import FedllmError, PeerError

_LOG = logging.getLogger(__name__)
_ARRAY_TYPE = "fedllm.bytes.v1"
_BESIDE, _SMALL_BYTES = "blob.", 1 << 18
_PARTITION = "partition-id"
_POLL_S = 0.05
_REMOTE_POLL_S, _MAX_POLL_S, _LOOK_S = 0.1, 1.0, 2.0
_NOBODY, _SERVER_NODE, _FIRST_NODE = -1, 1, 100


def to_content(header: str, blobs: Mapping[str, bytes]) -> RecordDict:
    """Put a header and blobs into Flower's records.

    Each part of a record is a request of its own to a SuperLink, so small blobs go beside the
    header. Flower cuts an Array into objects of 5 MiB, and does not cut a ConfigRecord: large
    blobs are an Array each.
    """
    if sum(map(len, blobs.values())) <= _SMALL_BYTES:
        beside = {_BESIDE + name: data for name, data in blobs.items()}
        return RecordDict({"header": ConfigRecord({"json": header, **beside})})
    content = RecordDict({"header": ConfigRecord({"json": header})})
    content["blobs"] = ArrayRecord(
        {
            name: Array(dtype="uint8", shape=(len(data),), stype=_ARRAY_TYPE, data=data)
            for name, data in blobs.items()
        }
    )
    return content


def from_content(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    """Take a header and blobs out of Flower's records.

    Raises
    ------
    PeerError
        If the records are not those of `to_content`.
    """
    header = dict(content.config_records.get("header", {}))
    text = header.pop("json", None)
    if not isinstance(text, str) or set(content) - {"header", "blobs"}:
        raise PeerError("a message does not have the form of fedllm's messages")
    blobs = {}
    for name, data in header.items():
        if not name.startswith(_BESIDE) or not isinstance(data, bytes):
            raise PeerError("a message's header holds what does not belong there")
        blobs[name.removeprefix(_BESIDE)] = data
    for name, array in content.array_records.get("blobs", {}).items():
        if array.stype != _ARRAY_TYPE or name in blobs:
            raise PeerError(f"a message's part '{name}' has the type {array.stype!r}")
        blobs[name] = array.data
    return text, blobs


@dataclass(frozen=True)
class Reply:
    """What came back from one node: content, or the reason why there is none."""

    node: int
    content: RecordDict | None
    failure: str = ""


class Presence(Protocol):
    """Knows which nodes are there, and when each of them came."""

    def mark(self, node: int) -> str | None:
        """Return what changes whenever the node starts anew; None while it is not there."""
        ...


def exchange(
    grid: Grid,
    kind: str,
    contents: Mapping[int, RecordDict],
    timeout_s: float,
    presence: Presence | None = None,
) -> Iterator[Reply]:
    """Send one message to each node and yield the replies as they arrive.

    Nodes that have not answered after ``timeout_s`` are yielded as failures, so that each
    node is yielded exactly once. With ``presence``, a node that left is a failure at once,
    and one that was started anew is asked again: what it had taken before is lost.
    """
    marks = {node: presence.mark(node) for node in contents} if presence else {}
    waiting: dict[str, int] = {}
    open_nodes = dict.fromkeys(contents)
    unsent = _push(grid, kind, contents, list(contents), timeout_s, waiting)
    deadline = time.monotonic() + timeout_s
    while open_nodes:
        for node in unsent:
            open_nodes.pop(node)
            yield Reply(node, None, "the message could not be sent")
        unsent = []
        arrived = list(grid.pull_messages(list(waiting))) if waiting else []
        for message in arrived:
            node = waiting.pop(message.metadata.reply_to_message_id, _NOBODY)
            # A reply that could not be fetched comes from Flower itself.
            lost = message.has_error() and message.metadata.src_node_id == _SERVER_NODE
            if node not in open_nodes or (message.metadata.src_node_id != node and not lost):
                continue
            open_nodes.pop(node)
            if message.has_error():
                yield Reply(node, None, message.error.reason or f"code {message.error.code}")
            else:
                yield Reply(node, message.content)
        if not open_nodes or arrived:
            # Sites that share this process answer one after the other; that is no silence.
            continue
        left = deadline - time.monotonic()
        for node in list(open_nodes):
            mark = presence.mark(node) if presence else ""
            if left < 0 or mark is None:
                open_nodes.pop(node)
                silent = f"no answer within {timeout_s:.0f} s"
                yield Reply(node, None, silent if left < 0 else "it is not connected any more")
            elif presence and mark != marks[node]:
                marks[node] = mark
                unsent += _push(grid, kind, contents, [node], left, waiting)
        if presence is None:
            time.sleep(_POLL_S)
        else:
            # Each look costs the SuperLink some work: who trains for long is asked less often.
            waited_s = timeout_s - left
            time.sleep(min(_MAX_POLL_S, max(_REMOTE_POLL_S, waited_s / 20)))


def _push(
    grid: Grid,
    kind: str,
    contents: Mapping[int, RecordDict],
    nodes: list[int],
    ttl_s: float,
    waiting: dict[str, int],
) -> list[int]:
    """Send, note the messages' ids in ``waiting``, and return the nodes they are not for."""
    messages = [
        Message(content=contents[node], dst_node_id=node, message_type=kind, ttl=ttl_s)
        for node in nodes
    ]
    sent = {i: node for i, node in zip(grid.push_messages(messages), nodes, strict=True) if i}
    waiting.update(sent)
    return [node for node in nodes if node not in sent.values()]


class LocalGrid(Grid):
    """Runs ClientApp handlers in this process, one message for each pull.

    Lazy on purpose: a reply is computed when the coordinator asks for it, so that never
    more than one site's update is in memory.
    """

    def __init__(self, client_app: ClientApp, nodes: int, run_id: int = 1) -> None:
        self._app = client_app
        self._run = Run.create_empty(run_id=run_id)
        self._contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config={_PARTITION: node - _FIRST_NODE, "num-partitions": nodes},
                state=RecordDict(),
                run_config={},
            )
            for node in range(_FIRST_NODE, _FIRST_NODE + nodes)
        }
        self._queue: deque[Message] = deque()
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Set the run whose messages this grid carries."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run whose messages this grid carries."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self._contexts)

    def get_nodes(self) -> list[NodeInfo]:
        """Return all nodes."""
        return [NodeInfo(node_id=node) for node in self._contexts]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages; their handlers run when the replies are pulled."""
        identifiers = []
        for message in messages:
            self._sent += 1
            message.metadata.__dict__["_message_id"] = f"local-{self._sent}"
            self._queue.append(message)
            identifiers.append(message.metadata.message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Run the next queued message among ``message_ids`` and return its reply."""
        wanted = set(message_ids)
        while self._queue:
            message = self._queue.popleft()
            if message.metadata.message_id in wanted:
                return [self._answer(message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Run all messages and return their replies; ``timeout`` has no meaning here."""
        identifiers = self.push_messages(messages)
        return [reply for one in identifiers for reply in self.pull_messages([one])]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        with task_identity(self._run.run_id, node):
            try:
                return self._app(message, self._contexts[node])
            except Exception as error:
                # The reply carries no text; whoever runs the simulation sees it here.
                _LOG.error(
                    "node %s failed on %s", node, message.metadata.message_type, exc_info=error
                )
                return Message(Error(code=0, reason=type(error).__name__), reply_to=message)


@contextlib.contextmanager
def task_identity(run_id: int, node: int) -> Iterator[None]:
    """Let Flower stamp messages made in the block as those of a node in a run."""
    # Flower stamps the sender of each new message from this process-wide identity, whose
    # public properties raise while nothing is set.
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def run_in_process(server_app: ServerApp, client_app: ClientApp, nodes: int) -> None:
    """Run both apps in this process; errors of the ServerApp are raised here."""
    grid = LocalGrid(client_app, nodes)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with task_identity(1, _SERVER_NODE):
        server_app(grid, context)


def run_with_ray(server_app: ServerApp, client_app: ClientApp, nodes: int, threads: int) -> None:
    """Run the sites as Ray actors of ``threads`` CPUs each; joins ``RAY_ADDRESS`` if set.

    Raises
    ------
    FedllmError
        If Ray is not installed, or the error of the ServerApp.
    """
    import importlib.util

    if importlib.util.find_spec("ray") is None:
        raise FedllmError("the engine 'ray' needs Ray", "pip install 'fedllm[ray]'")
    from flwr.simulation.run_simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    init: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if not os.environ.get("RAY_ADDRESS"):
        init["num_cpus"] = max(os.cpu_count() or 1, threads)
    run_simulation(
        server_app,
        client_app,
        nodes,
        backend_config={
            "init_args": init,
            "client_resources": {"num_cpus": threads, "num_gpus": 0.0},
        },
    )


def partition_of(context: Context) -> int:
    """Return the number of a simulated node, from 0."""
    return int(context.node_config[_PARTITION])


class GridPresence:
    """Asks a SuperLink which nodes are connected, every two seconds at most."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._asked_at = -math.inf
        self._nodes: dict[int, NodeInfo] = {}

    def mark(self, node: int) -> str | None:
        """Return when a connected node came; None for others."""
        found = self._look().get(node)
        return found.last_activated_at if found is not None else None

    def keys(self) -> dict[bytes, int]:
        """Return the connected nodes' numbers by their public keys (PEM)."""
        return {node.public_key: number for number, node in self._look().items()}

    def _look(self) -> dict[int, NodeInfo]:
        now = time.monotonic()
        if now - self._asked_at > _LOOK_S:
            self._nodes = {node.node_id: node for node in self._grid.get_nodes()}
            self._asked_at = now
        return self._nodes


def nodes_of(grid: Grid, count: int, timeout_s: float) -> list[int]:
    """Wait until ``count`` nodes are connected and return their ids in order.

    Raises
    ------
    PeerError
        If fewer are there after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= count:
            return nodes
        if time.monotonic() > deadline:
            raise PeerError(f"{len(nodes)} of {count} sites are connected", "start the others")
        time.sleep(_POLL_S)


Handler = Callable[[str, dict[str, bytes]], tuple[str, dict[str, bytes]]]


def answer(message: Message, handler: Handler) -> Message:
    """Run ``handler`` on a message's header and blobs and wrap what it returns."""
    header, blobs = handler(*from_content(message.content))
    return Message(to_content(header, blobs), reply_to=message)
