"""What carries a simulation's messages: this process, or Ray through Flower's simulator."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedllm.errors import FedllmError
from fedllm.extras import remedy_of
from fedllm.federation.transport.flower import SERVER_NODE

_LOG = logging.getLogger(__name__)
_PARTITION = "partition-id"
_FIRST_NODE = 100


def run_in_process(server_app: ServerApp, client_app: ClientApp, names: Sequence[str]) -> None:
    """Run both apps in this process, with a node for each site by name.

    Errors of the ServerApp are raised here.
    """
    grid = LocalGrid(client_app, len(names), names=names)
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    with task_identity(1, SERVER_NODE):
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
        raise FedllmError("the engine 'ray' needs Ray", remedy_of("ray"))
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


class LocalGrid(Grid):
    """Runs ClientApp handlers in this process, one message for each pull.

    Lazy on purpose: a reply is computed when the coordinator asks for it, so that never
    more than one site's update is in memory, nor more than one message to a site.
    """

    window = 1

    def __init__(
        self, client_app: ClientApp, nodes: int, run_id: int = 1, names: Sequence[str] = ()
    ) -> None:
        self._app = client_app
        self._names = dict(enumerate(names, _FIRST_NODE))
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
        # Asked for in the order in which they wait: a set of all, for each, would cost more.
        wanted = list(message_ids)
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
                who = self._names.get(node, f"node {node}")
                _LOG.error("%s failed on %s", who, message.metadata.message_type, exc_info=error)
                return Message(
                    Error(code=ErrorCode.UNKNOWN, reason=type(error).__name__), reply_to=message
                )


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
