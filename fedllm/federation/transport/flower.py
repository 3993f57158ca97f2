"""Our messages in Flower's records, sent over its grids and answered in its apps."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from fedllm.errors import PeerError

_ARRAY_TYPE = "fedllm.bytes.v1"
_BESIDE, _SMALL_BYTES = "blob.", 1 << 18
_POLL_S = 0.05
# Messages that are in memory before the grid has them.
_SENT_AT_ONCE = 16
_REMOTE_POLL_S, _MAX_POLL_S, _LOOK_S = 0.1, 1.0, 2.0
_NOBODY = -1
# Whose messages are Flower's own, and the coordinator's.
SERVER_NODE = 1

_ITS_LOG = "see its own log"
_LOST = (
    "see whether its service runs, whether its machine sleeps, and whether its network reaches the "
    "coordinator"
)
# Flower's words name its own parts; these say what a person can look at.
_FLOWERS = {
    ErrorCode.CLIENT_APP_CRASHED: ("its working process ended", _ITS_LOG),
    ErrorCode.MESSAGE_UNAVAILABLE: (
        "the question was not fetched in time, or the coordinator does not hold it any more",
        _LOST,
    ),
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: (
        "the answer came too late",
        "raise rounds.timeout_s if it trains for so long; see its own log",
    ),
    ErrorCode.NODE_UNAVAILABLE: (
        "the connection to it was lost (no sign of life in time): its service stopped, its machine "
        "sleeps, or its network is down",
        _LOST,
    ),
}


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
    """What came back from one node: content, or why there is none and what to look at."""

    node: int
    content: RecordDict | None
    failure: str = ""
    remedy: str = _ITS_LOG


def _failed(node: int, error: Error) -> Reply:
    words = _FLOWERS.get(error.code)
    if words is None:
        return Reply(node, None, error.reason or f"code {error.code}")
    return Reply(node, None, *words)


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

    Contents are looked up when they are sent, and a few at a time; where the grid has a
    ``window``, no more than so many messages wait for an answer.
    """
    marks = {node: presence.mark(node) for node in contents} if presence else {}
    waiting: dict[str, int] = {}
    open_nodes = dict.fromkeys(contents)
    to_send, unsent = deque(contents), list[int]()
    deadline = time.monotonic() + timeout_s
    while open_nodes:
        unsent += _push_next(grid, kind, contents, to_send, timeout_s, waiting)
        for node in unsent:
            open_nodes.pop(node)
            yield Reply(node, None, "the message could not be sent")
        unsent = []
        arrived = list(grid.pull_messages(list(waiting))) if waiting else []
        for message in arrived:
            node = waiting.pop(message.metadata.reply_to_message_id, _NOBODY)
            # A reply that could not be fetched comes from Flower itself.
            lost = message.has_error() and message.metadata.src_node_id == SERVER_NODE
            if node not in open_nodes or (message.metadata.src_node_id != node and not lost):
                continue
            open_nodes.pop(node)
            if message.has_error():
                yield _failed(node, message.error)
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
                yield Reply(
                    node, None, silent if left < 0 else "it is not connected any more", _LOST
                )
            elif presence and mark != marks[node]:
                marks[node] = mark
                unsent += _push(grid, kind, contents, [node], left, waiting)
        if presence is None:
            time.sleep(_POLL_S)
        else:
            # Each look costs the SuperLink some work: who trains for long is asked less often.
            waited_s = timeout_s - left
            time.sleep(min(_MAX_POLL_S, max(_REMOTE_POLL_S, waited_s / 20)))


def _push_next(
    grid: Grid,
    kind: str,
    contents: Mapping[int, RecordDict],
    to_send: deque[int],
    ttl_s: float,
    waiting: dict[str, int],
) -> list[int]:
    """Send to as many of the next nodes as the grid takes; returns those it did not take."""
    unsent: list[int] = []
    window = getattr(grid, "window", len(contents))
    while to_send and len(waiting) < window:
        count = min(window - len(waiting), _SENT_AT_ONCE, len(to_send))
        nodes = [to_send.popleft() for _ in range(count)]
        unsent += _push(grid, kind, contents, nodes, ttl_s, waiting)
    return unsent


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


class GridPresence:
    """Asks a SuperLink which nodes are connected, every two seconds at most."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._asked_at = -math.inf
        self._nodes: dict[int, tuple[bytes, str]] = {}

    def mark(self, node: int) -> str | None:
        """Return when a connected node came; None for others."""
        _, came = self._look().get(node, (b"", None))
        return came

    def keys(self) -> dict[bytes, int]:
        """Return the connected nodes' numbers by their public keys (PEM)."""
        return {key: number for number, (key, _) in self._look().items()}

    def _look(self) -> dict[int, tuple[bytes, str]]:
        now = time.monotonic()
        if now - self._asked_at > _LOOK_S:
            self._nodes = {
                node.node_id: (node.public_key, node.last_activated_at)
                for node in self._grid.get_nodes()
            }
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
