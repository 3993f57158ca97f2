"""The coordinator's doors: what is served where, to whom, in which sizes, over which TLS.

A stranger costs the coordinator a TLS handshake and one answer: paths, sizes and keys are
checked before a byte of a body is read and before anything of a stranger's is parsed as a key,
headers are bounded, and who says nothing is hung up on. A registered node's bodies must come in
time, and only so many at once.
"""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.concurrency import run_in_threadpool
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedllm.canonical import UNREADABLE
from fedllm.errors import ConfigError
from fedllm.federation.transport.bodies import Bodies, BodyError, Patience, Receive, replayed
from fedllm.identity.roster import ROSTER_PATH

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
PRIVATE_PATHS = frozenset(
    f"/v1/runtime/{name}"
    for name in (
        "get-nodes",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
        "send-task-heartbeat",
    )
)
# Flower cuts a message into objects of 5 MiB; a request carries one.
MAX_REQUEST_BYTES = 8 << 20
# Where in the scope of a request the app finds whose it is.
NODE_KEY = "fedllm.node_key"
# Everything else that a node says is short. A message's list of its objects is, too: so much
# names objects for some 5 GiB, and no node can make its coordinator expect more.
MAX_ENVELOPE_BYTES = 64 << 10
_MAX_DIGITS = 12
_CLOCK_TOLERANCE_S = 60.0


@dataclass(frozen=True)
class Listener:
    """Where the public listener is, and its TLS files (PEM)."""

    host: str
    port: int
    certificate: Path
    key: Path


class Door(H11Protocol):
    """Uvicorn's HTTP/1.1, for connections that say what they want in time.

    The other implementation that uvicorn knows (httptools) keeps headers without end.
    """

    first_request_s = 20.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection, and hang up unless the headers of a request follow."""
        super().connection_made(transport)
        self._wait_for_headers()

    def data_received(self, data: bytes) -> None:
        """Take what came; a later request that is begun must get on as the first one."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self._waiting is None and not self.transport.is_closing():
            self._wait_for_headers()

    def _wait_for_headers(self) -> None:
        self._waiting = self.loop.call_later(self.first_request_s, self._hang_up_on_the_silent)

    def _hang_up_on_the_silent(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.abort()


def server_of(app: App) -> uvicorn.Server:
    """Return a server of ``app``, without TLS yet."""
    config = uvicorn.Config(
        app,
        http=Door,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
    )
    config.load()
    return uvicorn.Server(config)


def gate(
    app: App,
    paths: frozenset[str],
    known: Callable[[bytes], bool] | None,
    turn_over: Callable[[bytes], None] | None,
    patience: Patience | None = None,
) -> App:
    """Return ``app`` behind a door that opens for known paths, sizes and keys alone.

    Parameters
    ----------
    paths : frozenset of str
        What is served; all by POST.
    known : callable, optional
        Whether a node key (PEM) is in the roster; None where ``app`` asks for a token.
    turn_over : callable, optional
        Hears the key of a node that activates itself.
    patience : Patience, optional
        With slow and unfinished bodies.
    """
    bodies = Bodies(patience or Patience())

    async def door(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in paths:
            await _refuse(scope, send, 404)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        length = headers.get(b"content-length", b"")
        carries = scope["path"].endswith("/push-object") or known is None
        largest = MAX_REQUEST_BYTES if carries else MAX_ENVELOPE_BYTES
        if not length.isdigit() or len(length) > _MAX_DIGITS or int(length) > largest:
            await _refuse(scope, send, 413)
            return
        if b"transfer-encoding" in headers:
            # Two lengths of one body are two meanings.
            await _refuse(scope, send, 400)
            return
        key = b""
        if known is not None:
            proven = await run_in_threadpool(_proven_key, headers, known)
            if proven is None:
                await _refuse(scope, send, 401)
                return
            key = proven
        try:
            body = await bodies.read(key, int(length), receive)
        except BodyError as error:
            if error.status:
                await _refuse(scope, send, error.status)
            return
        if known is not None and turn_over is not None and scope["path"].endswith("/activate-node"):
            await run_in_threadpool(turn_over, key)
        await app({**scope, NODE_KEY: key}, replayed(body, receive), send)

    return door


def with_roster(app: App, roster: Callable[[], bytes]) -> App:
    """Answer the roster's path, and hand everything else to ``app``."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") != ROSTER_PATH:
            await app(scope, receive, send)
            return
        content = roster()
        headers = [(b"content-length", str(len(content)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    return serve


def _proven_key(headers: Mapping[bytes, bytes], known: Callable[[bytes], bool]) -> bytes | None:
    """Return the known public key (PEM) whose owner signed the time of this request."""
    try:
        key = b64decode(headers[b"flwr-public-key"], validate=True)
        # Before anything of a stranger's is parsed as a key.
        if not known(key):
            return None
        signature = b64decode(headers[b"flwr-signature"], validate=True)
        moment = headers[b"flwr-timestamp"]
        signed_at = datetime.datetime.fromisoformat(moment.decode("ascii"))
        age_s = (datetime.datetime.now(datetime.UTC) - signed_at).total_seconds()
        public = load_pem_public_key(key)
        if abs(age_s) > _CLOCK_TOLERANCE_S or not isinstance(public, ec.EllipticCurvePublicKey):
            return None
        public.verify(signature, moment, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, *UNREADABLE):
        return None
    return key


async def _refuse(scope: Scope, send: Send, status: int) -> None:
    if scope["type"] != "http":
        return
    closing = [(b"connection", b"close"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": status, "headers": closing})
    await send({"type": "http.response.body", "body": b""})


def bind(host: str, port: int) -> socket.socket:
    """Open a listening address.

    Raises
    ------
    ConfigError
        If it is taken, or is no address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = socket.socket(family, socket.SOCK_STREAM)
    where.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        where.bind((host, port))
    except (OSError, OverflowError) as error:
        where.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({getattr(error, 'strerror', None) or error})",
            "stop the program that listens there, or choose another address",
        ) from None
    return where


def server_context(listener: Listener) -> ssl.SSLContext:
    """Return TLS 1.3 with the coordinator's certificate.

    Raises
    ------
    ConfigError
        If certificate or key cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(listener.certificate, listener.key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the server certificate {listener.certificate} and its key cannot be read "
            f"({type(error).__name__})",
            "restore the kit, or renew the certificate",
        ) from None
    return context
