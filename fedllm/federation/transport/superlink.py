"""The coordinator's side of Flower's fleet: a SuperLink that lets in the roster and nobody else.

One process holds Flower's state on disk and two listeners
(`fedllm.federation.transport.listener`). The public one (TLS) serves eight paths of the fleet
interface, the signed roster and released models, to registered nodes; who does not prove a
registered key is turned away before a byte of the request's body is read. The private one
(loopback) serves the process that carries a run, by its token. Flower's control interface, through
which anyone could submit code or register nodes, is served nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, TRANSPORT_TYPE_GRPC_RERE, Status
from flwr.server.superlink.linkstate import LinkState
from flwr.serverapp import Grid
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.grid import HttpGrid
from flwr.superlink.main import create_app

from fedllm.errors import ConfigError, FedllmError
from fedllm.federation.transport.listener import (
    PRIVATE_PATHS,
    PUBLIC_PATHS,
    Listener,
    bind,
    gate,
    server_context,
    server_of,
    with_roster,
)
from fedllm.federation.transport.releases import RELEASE_PATHS, Shelf, with_releases
from fedllm.identity.roster import ROSTER_PATH

_SERVER_NODE = 1
# How long both listeners may take to answer.
_START_S = 60.0
# Of a node that was never there; with its activation it says its own.
_HEARTBEAT_S = 10.0


@dataclass(frozen=True)
class NodeState:
    """A registered node.

    Attributes
    ----------
    name : str
        The party's name in the roster.
    node_id : int
        Flower's number for it.
    online : bool
        Whether it was heard of lately.
    since : str, optional
        When it last came online or went offline (ISO 8601).
    """

    name: str
    node_id: int
    online: bool
    since: str | None


@dataclass(frozen=True)
class Ticket:
    """What the process that carries a run needs to speak through the SuperLink."""

    address: str
    run_id: int
    task_id: int
    token: str

    def __repr__(self) -> str:
        return f"Ticket({self.address!r}, {self.run_id}, <hidden>)"


class SuperLink:
    """Flower's server state and its two listeners.

    Parameters
    ----------
    database : Path
        SQLite file; what nodes and coordinator know of each other survives a restart.
    listener : Listener
        The public listener.
    shelf : Shelf, optional
        Released models, for nodes that ask for them.

    Raises
    ------
    ConfigError
        If a certificate cannot be read or an address is taken.
    """

    def __init__(self, database: Path, listener: Listener, shelf: Shelf | None = None) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self._names: dict[bytes, str] = {}
        self._app = create_app(_lifespan_config(database), SuperLinkLifespan)
        self._state: LinkState = self._app.state.linkstate_factory.state()
        self._private_socket = bind("127.0.0.1", 0)
        self._public_socket = bind(listener.host, listener.port)
        self.port: int = self._public_socket.getsockname()[1]
        self._roster = b""
        public_app = with_roster(self._app, lambda: self._roster)
        paths = PUBLIC_PATHS | {ROSTER_PATH}
        if shelf is not None:
            public_app, paths = with_releases(public_app, shelf), paths | RELEASE_PATHS
        public = server_of(gate(public_app, paths, self._node_key, self._turn_over))
        public.config.ssl = server_context(listener)
        self._servers = (public, server_of(gate(self._app, PRIVATE_PATHS, None, None)))
        self._thread = threading.Thread(target=self._run, name="superlink", daemon=True)

    @property
    def private_address(self) -> str:
        """``host:port`` of the private listener."""
        return f"127.0.0.1:{self._private_socket.getsockname()[1]}"

    def start(self) -> None:
        """Serve in a thread; returns when both listeners answer.

        Raises
        ------
        FedllmError
            If they do not within a minute.
        """
        self._thread.start()
        deadline = time.monotonic() + _START_S
        while not all(server.started for server in self._servers):
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise FedllmError("the listeners did not start", "see the log")
            time.sleep(0.02)

    def stop(self) -> None:
        """Close both listeners."""
        for server in self._servers:
            server.should_exit = True
        self._thread.join(timeout=5.0)

    @property
    def alive(self) -> bool:
        """Whether the listeners are being served."""
        return self._thread.is_alive()

    def register(self, keys: Mapping[str, bytes], roster: str = "") -> None:
        """Let exactly these nodes in, and give them the signed roster when they ask for it.

        Parameters
        ----------
        keys : mapping of str to bytes
            Public key (PEM) of each node by name.
        roster : str
            The signed roster; empty for none.

        Raises
        ------
        ConfigError
            If a key was revoked before; it stays out, and all the others are in force.
        """
        names = {key: name for name, key in keys.items()}
        known = {node.public_key: node for node in self._state.get_node_info()}
        # First: whoever is not in the roster stays out, whatever happens below.
        self._names = {key: name for key, name in self._names.items() if key in names}
        self._roster = roster.encode()
        revoked = []
        for key, node in known.items():
            if key not in names and node.status != "unregistered":
                self._state.delete_node(NOOP_FLWR_AID, node.node_id)
        for key, name in names.items():
            if self._state.get_node_id_by_public_key(key) is not None:
                continue
            if key in known:
                revoked.append(name)
                continue
            self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, _HEARTBEAT_S, name=name)
        self._names = {key: name for key, name in names.items() if name not in revoked}
        if revoked:
            raise ConfigError(
                f"the node keys of {', '.join(revoked)} were revoked before and stay out",
                "the party must enroll with a new kit",
            )

    def nodes(self) -> list[NodeState]:
        """Return the registered nodes, by name."""
        found = []
        for node in self._state.get_node_info():
            name = self._names.get(node.public_key)
            if name is not None:
                online = node.status == "online"
                since = node.last_activated_at if online else node.last_deactivated_at
                found.append(NodeState(name, node.node_id, online, since or None))
        return sorted(found, key=lambda node: node.name)

    def open_run(self) -> Ticket:
        """Begin a run without an app bundle and return the ticket of who carries it."""
        run_id = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (task,) = self._state.get_tasks(run_ids=[run_id])
        token = self._state.claim_task(task.task_id)
        if token is None or not self._state.activate_task(task.task_id):
            raise FedllmError("Flower's state did not take a new run", "restart the coordinator")
        return Ticket(self.private_address, run_id, task.task_id, token)

    def close_runs(self) -> None:
        """End all runs and delete what is left of their messages."""
        unfinished = [Status.PENDING, Status.STARTING, Status.RUNNING]
        for run in self._state.get_run_info(statuses=unfinished):
            self._state.stop_run(run.run_id)

    def _node_key(self, key: bytes) -> bool:
        return key in self._names

    def _turn_over(self, key: bytes) -> None:
        # A node that was killed comes back before its heartbeats are missed.
        node_id = self._state.get_node_id_by_public_key(key)
        if node_id is not None:
            self._state.deactivate_node(node_id)

    def _run(self) -> None:
        async def both() -> None:
            public, private = self._servers
            async with self._app.router.lifespan_context(self._app):
                await asyncio.gather(
                    public.serve([self._public_socket]), private.serve([self._private_socket])
                )

        asyncio.run(both())


def _lifespan_config(database: Path) -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,
        certificates=None,
        # Known to nobody: tasks are handed out in this process alone.
        superexec_auth_secret=secrets.token_bytes(32),
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation="process",
        runtime_dependency_install=False,
    )


@contextlib.contextmanager
def grid_of(ticket: Ticket) -> Iterator[Grid]:
    """Connect the process that carries a run to its coordinator's SuperLink."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.task_id, TaskIdentity.run_id = ticket.task_id, ticket.run_id
    TaskIdentity.node_id = _SERVER_NODE
    grid = HttpGrid(ticket.address, insecure=True, token=ticket.token)
    grid.set_run(Run.create_empty(run_id=ticket.run_id))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeat.start()
    try:
        yield grid
    finally:
        heartbeat.stop()
        grid.close()
