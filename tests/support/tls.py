"""A TLS handshake without a network, and a small server that could be a coordinator."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path


@contextmanager
def tls_server(
    kit: Path,
    port: int,
    date: datetime | str | None = "now",
    status: str = "400 Bad Request",
) -> Iterator[None]:
    """Answer any request on loopback with the certificate of a coordinator's kit.

    ``date`` is the time in its answers; None leaves it out. "now" is half a minute ahead: a
    client takes that for its own time, also when it is kept waiting for its turn.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kit / "server.pem", kit / "server.key")
    listener = socket.create_server(("127.0.0.1", port))

    def answer() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            with suppress(OSError), context.wrap_socket(plain, server_side=True) as stream:
                # A request of `reach_coordinator`, to the last byte of its body.
                received = b""
                while not received.endswith(b"\xff") and (part := stream.recv(4096)):
                    received += part
                moment = datetime.now(UTC) + timedelta(seconds=30) if date == "now" else date
                header = f"Date: {format_datetime(moment, usegmt=True)}\r\n" if moment else ""
                stream.sendall(f"HTTP/1.1 {status}\r\n{header}Content-Length: 0\r\n\r\n".encode())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=120)


def handshake(certificate: Path, key: Path, ca: Path, host: str) -> Exception | None:
    """Let a client that trusts ``ca`` meet a server; return why the client refused, if it did."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(certificate, key)
    ours = ssl.create_default_context(cafile=str(ca))
    client = ours.wrap_bio(to_client, to_server, server_hostname=host)
    listener = theirs.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(6):
        for side in (client, listener):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                return error
    return None
