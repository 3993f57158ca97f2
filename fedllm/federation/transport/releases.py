"""Released models for the nodes in the roster: two more paths of the coordinator's public listener.

A node asks; nothing is ever sent to a site that did not. What is given was signed when it was
released, and lies in a folder of its own: nothing else of the coordinator's disk can be named. A
node that does not read its answers holds a few pieces in memory, for a bounded time.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from http import HTTPStatus
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from fedllm.errors import PeerError
from fedllm.federation.protocol.releases import (
    MAX_LIST_BYTES,
    MAX_LISTED,
    PIECE_BYTES,
    PIECE_PATH,
    RELEASES_PATH,
    read_piece_request,
)
from fedllm.federation.transport.bodies import Patience, Receive
from fedllm.federation.transport.listener import NODE_KEY, App, Scope, Send

RELEASE_PATHS = frozenset({RELEASES_PATH, PIECE_PATH})
# A node fetches one piece after the other.
_AT_ONCE = 4
_PART_BYTES = 64 << 10


class Shelf:
    """The folder of a coordinator's releases, as nodes may ask for them.

    One folder for each, named by the run: the signed document and beside it the adapter's files.

    Parameters
    ----------
    folder : Path
        Need not exist.
    document, files : str
        The names of the signed document, and of the folder of the adapter, in a release's folder.
    """

    def __init__(self, folder: Path, document: str, files: str) -> None:
        self._folder = folder
        self._document = document
        self._files = files

    def listed(self) -> bytes:
        """Return the newest signed documents, as many as a node takes, as a JSON list."""
        found = [path for path in self._folder.glob(f"*/{self._document}") if path.is_file()]
        found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        texts: list[bytes] = []
        left = MAX_LIST_BYTES - 2
        for path in found[:MAX_LISTED]:
            text = path.read_bytes()
            left -= len(text) + 1
            if left < 0:
                break
            texts.append(text)
        return b"[" + b",".join(texts) + b"]"

    def piece(self, body: bytes) -> bytes:
        """Return the piece that a request asks for.

        Raises
        ------
        ValueError
            If the request is none.
        OSError
            If there is no such release, or no such file in it.
        PeerError
            If the file ends before the piece begins.
        """
        run, name, offset = read_piece_request(body)
        path = self._folder / run / self._files / name
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            stream.seek(offset)
            content = stream.read(PIECE_BYTES)
        if not content:
            raise PeerError("a node asked for what is behind the end of a file")
        return content


def with_releases(app: App, shelf: Shelf, patience: Patience | None = None) -> App:
    """Answer the paths of releases, and hand everything else to ``app``.

    Stands behind the listener's gate, which has checked path, size and key.
    """
    waits = patience or Patience()
    unfinished: Counter[bytes] = Counter()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path")
        if path not in RELEASE_PATHS:
            await app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")
        node = scope.get(NODE_KEY, b"")
        if unfinished[node] >= _AT_ONCE:
            await _answer(send, HTTPStatus.TOO_MANY_REQUESTS, b"")
            return
        unfinished[node] += 1
        try:
            status, content = await run_in_threadpool(_found, shelf, path, body)
            async with asyncio.timeout(waits.silence_s + len(content) / waits.bytes_per_s):
                await _answer(send, status, content)
        except TimeoutError:
            # An answer without its end closes the connection.
            return
        finally:
            unfinished[node] -= 1
            if not unfinished[node]:
                del unfinished[node]

    return serve


def _found(shelf: Shelf, path: str, body: bytes) -> tuple[HTTPStatus, bytes]:
    try:
        return HTTPStatus.OK, shelf.listed() if path == RELEASES_PATH else shelf.piece(body)
    except ValueError:
        return HTTPStatus.BAD_REQUEST, b""
    except (OSError, PeerError):
        return HTTPStatus.NOT_FOUND, b""


async def _answer(send: Send, status: HTTPStatus, content: bytes) -> None:
    """Send an answer in parts, each when its reader took most of those before it."""
    headers = [(b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status.value, "headers": headers})
    for start in range(0, len(content), _PART_BYTES):
        part = content[start : start + _PART_BYTES]
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
