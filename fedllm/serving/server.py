"""Run the service until it is told to stop."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uvicorn

from fedllm.errors import ConfigError
from fedllm.federation.transport.listener import Door, bind

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
# Connections that wait to be taken.
_BACKLOG = 256


@dataclass(frozen=True)
class Address:
    """Where the service listens.

    Attributes
    ----------
    certificate, key : Path, optional
        Of TLS (PEM); without them it speaks plain HTTP.
    """

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether programs of this machine alone reach it."""
        return self.host in _LOOPBACK


class Gate(Protocol):
    """An ASGI application that is told when no more is taken."""

    stopping: bool

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        ...


def listening_socket(address: Address) -> socket.socket:
    """Open the address, and let whoever connects wait until it is served.

    Raises
    ------
    ConfigError
        If it is taken, or is no address.
    """
    remedy = (
        "take another port with --port (0: a free one), stop the program that listens there, "
        "or give an address of this machine with --host"
    )
    try:
        where = bind(address.host, address.port)
    except ConfigError as error:
        raise ConfigError(error.message, remedy) from None
    try:
        # An address that nobody listens on yet, a second program could take as well.
        where.listen(_BACKLOG)
    except OSError as error:
        where.close()
        raise ConfigError(
            f"cannot listen on {address.host}:{address.port} ({error.strerror})", remedy
        ) from None
    return where


def serve(
    gate: Gate,
    where: socket.socket,
    tls: ssl.SSLContext | None,
    stop: threading.Event,
    ready: Callable[[int], None],
    grace_s: float,
) -> None:
    """Listen until ``stop`` is set; then answer what is under way, for so many seconds at most.

    Parameters
    ----------
    where : socket
        As `listening_socket` opens it; closed at the end.
    tls : SSLContext, optional
        As `tls_context` makes it; without it plain HTTP is spoken.
    ready : callable
        Told the port when connections are taken.
    """
    config = uvicorn.Config(
        gate,  # type: ignore[arg-type]
        http=Door,
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace_s)),
        backlog=_BACKLOG,
    )
    config.load()
    config.ssl = tls
    server = uvicorn.Server(config)
    # Beside the main thread, where signals are the command's.
    working = threading.Thread(target=lambda: asyncio.run(server.serve([where])), name="http")
    try:
        working.start()
        while not server.started and working.is_alive():
            time.sleep(0.02)
        if server.started:
            ready(where.getsockname()[1])
        while working.is_alive() and not stop.wait(0.1):
            pass
        gate.stopping = True
        server.should_exit = True
        working.join()
    finally:
        where.close()


def tls_context(address: Address) -> ssl.SSLContext | None:
    """Return how TLS is spoken; None where it is not.

    Raises
    ------
    ConfigError
        If certificate or key cannot be read.
    """
    certificate, key = address.certificate, address.key
    if certificate is None or key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"the certificate {certificate} and its key cannot be read ({type(error).__name__})",
            "give both as PEM files, and let this user read them",
        ) from None
    return context
