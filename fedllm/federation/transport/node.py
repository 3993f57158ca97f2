"""A node's side of Flower's fleet: takes messages, hands them to a ClientApp, sends the replies.

It speaks the same protocol as Flower's SuperNode and leaves out what a site must not have: it
never asks for the app bundle, opens no port, and starts no code but the app it was given. With
`engines` and `superlink` the only file that imports Flower's private modules.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedllm.canonical import UNREADABLE
from fedllm.errors import ConfigError, FedllmError, PeerError
from fedllm.federation.transport.engines import task_identity

MAX_MESSAGE_BYTES = 4 << 30
# Of one answer of the coordinator's: an object of 5 MiB and its wrapping fit.
MAX_REPLY_BYTES = 16 << 20
# Silent for twice as long, a node counts as gone.
_HEARTBEAT_S, _BEAT_EVERY_S = 15.0, 5.0
_BUSY_POLL_S, _IDLE_POLL_S = 0.2, 2.0
_MAX_WAIT_S = 30.0
_MAX_DIGITS = 12

Answer = TypeVar("Answer")


class PartyNode:
    """Keeps a node connected to its coordinator, for ever, until it is told to stop.

    Parameters
    ----------
    address : str
        ``host:port`` of the coordinator's public listener.
    ca_certificate : Path
        The federation's own CA (PEM); no other is trusted.
    node_key : Path
        The node's private ECDSA key (OpenSSH format), whose public half the coordinator knows.
    app : ClientApp
        Answers the messages.
    say : callable
        Hears what a person who reads the log should know.
    linked : callable, optional
        Told whenever the connection stands or is lost.

    Raises
    ------
    ConfigError
        If the certificate or the key cannot be read.
    """

    def __init__(
        self,
        address: str,
        ca_certificate: Path,
        node_key: Path,
        app: ClientApp,
        say: Callable[[str], None],
        linked: Callable[[bool], None] = lambda connected: None,
    ) -> None:
        self._address = address
        self._private_key = read_node_key(node_key)
        self._verify = client_context(ca_certificate)
        self._app = app
        self._say = say
        self._linked = linked

    def serve(self, stop: threading.Event) -> None:
        """Take and answer messages until ``stop`` is set; connects again after each failure."""
        wait_s, last = 1.0, ""
        while not stop.is_set():
            try:
                with self._link(stop) as link:
                    self._say(f"connected to {self._address}")
                    self._linked(True)
                    wait_s, last = 1.0, ""
                    link.work()
                return
            except (httpx.HTTPError, OSError, PeerError) as error:
                reason = _reason(error)
                self._linked(False)
            # The same complaint each half minute would hide what matters.
            if reason != last:
                self._say(f"no connection to {self._address}: {reason}; trying again for ever")
            last = reason
            stop.wait(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)

    @contextlib.contextmanager
    def _link(self, stop: threading.Event) -> Iterator[_Link]:
        public_key = self._private_key.public_key()
        with FleetHttpClient(
            f"https://{self._address}",
            interceptors=[NodeAuthHttpInterceptor(self._private_key, public_key)],
            verify=self._verify,
        ) as client:
            # A redirect would make this node send requests into its own network.
            client._client.follow_redirects = False
            client._client.headers["accept-encoding"] = "identity"
            client._client.event_hooks = {"response": [bounded]}
            activated = client.ActivateNode(
                ActivateNodeRequest(
                    public_key=public_key_to_bytes(public_key), heartbeat_interval=_HEARTBEAT_S
                )
            )
            link = _Link(client, activated.node_id, self._app, self._say, stop)
            beat = threading.Thread(target=link.heartbeats, daemon=True)
            beat.start()
            try:
                yield link
            finally:
                link.gone.set()
                with contextlib.suppress(httpx.HTTPError, OSError, FedllmError, ValueError):
                    client.DeactivateNode(DeactivateNodeRequest(node_id=activated.node_id))
                beat.join(timeout=2.0)


class _Link:
    """One connection: from the activation of the node to its loss."""

    def __init__(
        self,
        client: FleetHttpClient,
        node_id: int,
        app: ClientApp,
        say: Callable[[str], None],
        stop: threading.Event,
    ) -> None:
        self._client = client
        self._node = Node(node_id=node_id)
        self._app = app
        self._say = say
        self._stop = stop
        self.gone = threading.Event()

    def heartbeats(self) -> None:
        """Tell the coordinator that this node lives, until the link is gone."""
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_HEARTBEAT_S)
        while not self.gone.wait(_BEAT_EVERY_S):
            # A failure shows in the main thread's own requests; beats go on whatever came back.
            with contextlib.suppress(Exception):
                self._client.SendNodeHeartbeat(request)

    def work(self) -> None:
        """Take and answer messages until told to stop.

        Raises
        ------
        httpx.HTTPError
            If the coordinator cannot be reached.
        """
        last = time.monotonic()
        while not self._stop.is_set():
            pulled = self._client.PullMessages(PullMessagesRequest(node=self._node))
            for proto, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=False):
                self._handle(message_from_proto(proto), tree)
                last = time.monotonic()
            if not pulled.messages_list:
                # A round's messages follow each other closely; between rounds there is time.
                quiet_s = time.monotonic() - last
                self._stop.wait(min(_IDLE_POLL_S, max(_BUSY_POLL_S, quiet_s / 10)))

    def _handle(self, envelope: Message, tree: ObjectTree) -> None:
        run, kind = envelope.metadata.run_id, envelope.metadata.message_type
        try:
            message = self._fetch(envelope, tree)
        except httpx.TransportError:
            raise
        except Exception as error:
            # Whatever a hostile coordinator sent, the node goes on to the next message.
            self._say(f"a message of kind {kind!r} could not be fetched ({type(error).__name__})")
            return
        # No longer than it takes to make the answer: the identity is the whole process's.
        with task_identity(run, self._node.node_id):
            reply = self._answer(message)
        try:
            self._insist(lambda: self._send(reply))
        except (ObjectPushError, httpx.HTTPStatusError) as error:
            # The run has ended, or waits no longer: that is no fault of the connection.
            self._say(f"the answer to {kind!r} was not taken ({_reason(error)})")

    def _answer(self, message: Message) -> Message:
        context = Context(
            run_id=message.metadata.run_id,
            node_id=self._node.node_id,
            node_config={},
            state=RecordDict(),
            run_config={},
        )
        try:
            return self._app(message, context)
        except Exception as error:
            # Neither the text nor the trace leaves this machine.
            name = type(error).__name__
            self._say(f"a message of kind {message.metadata.message_type!r} failed: {name}")
            text = str(error) if isinstance(error, FedllmError) else ""
            if text:
                self._say(text)
            return Message(
                Error(code=ErrorCode.UNKNOWN, reason="the node could not answer"), reply_to=message
            )

    def _fetch(self, envelope: Message, tree: ObjectTree) -> Message:
        run, wanted = envelope.metadata.run_id, envelope.metadata.message_id
        if tree.object_id != wanted:
            raise PeerError("a message and its parts do not belong together")
        pull = make_pull_object_fn_protobuf(
            lambda request: self._insist(lambda: self._client.PullObject(request)), self._node, run
        )
        total = 0

        def counted(object_id: str) -> bytes:
            nonlocal total
            content = pull(object_id)
            total += len(content)
            if total > MAX_MESSAGE_BYTES:
                raise PeerError(f"a message is larger than {MAX_MESSAGE_BYTES >> 30} GiB")
            return content

        contents = pull_objects(
            [one.object_id for one in iterate_object_tree(tree)],
            counted,
            initial_backoff=_BUSY_POLL_S,
            backoff_cap=_IDLE_POLL_S,
        )
        message = inflate_object_from_contents(wanted, contents)
        if not isinstance(message, Message) or message.metadata.dst_node_id != self._node.node_id:
            raise PeerError("a message is not for this node")
        message.metadata.__dict__["_message_id"] = wanted
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self._node, run
        )
        confirm(wanted)
        return message

    def _send(self, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            pushed = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    # How long the work took depends on records; Flower would only log it.
                    clientapp_runtime_list=[0.0],
                )
            )
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(
                    self._client.PushObject, self._node, reply.metadata.run_id, pushed.session_id
                ),
                object_ids_to_push=set(pushed.objects_to_push),
            )

    def _insist(self, call: Callable[[], Answer]) -> Answer:
        """Repeat a request while the coordinator cannot be reached."""
        wait_s = 0.5
        while True:
            try:
                return call()
            except httpx.TransportError:
                if self._stop.is_set():
                    raise
            self._stop.wait(wait_s)
            wait_s = min(2 * wait_s, _MAX_WAIT_S)


def bounded(response: httpx.Response) -> None:
    """Refuse an answer before it is read: too long, of unknown length, or compressed.

    Raises
    ------
    PeerError
        If a coordinator could fill this machine's memory with it.
    httpx.HTTPStatusError
        If it is no success; what else it says is not read.
    """
    response.raise_for_status()
    length = response.headers.get("content-length", "")
    encoding = response.headers.get("content-encoding", "identity")
    if not (length.isascii() and length.isdigit()) or len(length) > _MAX_DIGITS:
        raise PeerError("the coordinator's answer does not say how long it is")
    if int(length) > MAX_REPLY_BYTES or encoding != "identity":
        raise PeerError(f"the coordinator's answer is larger than {MAX_REPLY_BYTES >> 20} MiB")


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a node's ECDSA key.

    Raises
    ------
    ConfigError
        If it is missing or of another kind.
    """
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, *UNREADABLE) as error:
        raise ConfigError(
            f"the node key {path} cannot be read ({type(error).__name__})", "restore the kit"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} does not hold an ECDSA key", "restore the kit")
    return key


def client_context(ca_certificate: Path) -> ssl.SSLContext:
    """Return TLS settings that trust one CA alone (TLS 1.3).

    Raises
    ------
    ConfigError
        If the certificate cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=str(ca_certificate))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the CA certificate {ca_certificate} cannot be read ({type(error).__name__})",
            "restore the kit",
        ) from None
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        if status == httpx.codes.UNAUTHORIZED:
            return (
                "it does not know this node's key (not in its roster, or revoked), or the "
                "clocks differ"
            )
        return f"it answered with status {status}"
    if isinstance(error, FedllmError):
        return error.message
    words = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in words:
        return f"its certificate is refused ({words.rpartition(': ')[2]})"
    return f"{type(error).__name__} {words}".strip()
