"""Ports of loopback that stay free for the test that asked for them."""

from __future__ import annotations

import socket

_held: list[socket.socket] = []


def free_port() -> int:
    """Return a port that nobody else gets while this process lives.

    The port stays bound by a socket that never listens. Connections to it are refused, the
    system gives it to nobody, and a server that sets SO_REUSEADDR can listen on it.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    _held.append(holder)
    return int(holder.getsockname()[1])
