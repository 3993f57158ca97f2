"""A TLS handshake without a network."""

from __future__ import annotations

import ssl
from pathlib import Path


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
