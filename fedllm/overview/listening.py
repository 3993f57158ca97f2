"""The address of a site's page, and the token that opens it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socket import socket

from fedllm.dashboard import listening
from fedllm.files import write_bytes
from fedllm.overview.application import SitePage
from fedllm.overview.standing import Look
from fedllm.processes import Stop, say
from fedllm.serving.server import serve

_HOST = "127.0.0.1"
_GRACE_S = 2.0


def opened(port: int) -> socket:
    """Open a port of loopback; see `dashboard.listening.opened`."""
    return listening.opened(port, "--port")


def show(look: Look, where: socket, stop: Stop, ready: Callable[[str, str, Path], None]) -> None:
    """Show a site until ``stop`` is set; ``ready`` hears address, token and the token's file."""
    token, file = secrets.token_urlsafe(32), look.kit.state / "page-token"
    page = SitePage(look, token, say, time.monotonic)
    write_bytes(file, token.encode() + b"\n", 0o600)
    try:
        serve(
            page,
            where,
            None,
            stop,
            lambda port: ready(f"http://{_HOST}:{port}/", token, file),
            _GRACE_S,
        )
    finally:
        # Another page of the same site may have left its own.
        with suppress(OSError):
            if file.read_bytes().strip() == token.encode():
                file.unlink()
