"""The bodies of requests: read whole before anybody works on them, in time, and not too many."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True)
class Patience:
    """How long and for how many bodies a listener waits.

    Attributes
    ----------
    silence_s : float
        Without another byte of a body its connection is given up.
    bytes_per_s : float
        A body must come at this rate on average; a slow line of a site manages it.
    at_once : int
        Unfinished bodies of one node. A node sends two parts of a message at once, beside its
        heartbeat; what a broken connection left behind counts until it is given up.
    """

    silence_s: float = 20.0
    bytes_per_s: float = 8192.0
    at_once: int = 16


class BodyError(Exception):
    """A body is not waited for; ``status`` says why, 0 where nobody is there to hear it."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Bodies:
    """Reads the bodies of one listener's requests."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._unfinished: Counter[bytes] = Counter()

    async def read(self, owner: bytes, length: int, receive: Receive) -> bytes:
        """Return a body of ``length`` bytes, sent by ``owner`` (a node key).

        Raises
        ------
        BodyError
            If it is too slow (408), one too many (429), of another length (400), or its sender
            is gone (0).
        """
        if self._unfinished[owner] >= self._patience.at_once:
            raise BodyError(HTTPStatus.TOO_MANY_REQUESTS)
        self._unfinished[owner] += 1
        try:
            async with asyncio.timeout(
                self._patience.silence_s + length / self._patience.bytes_per_s
            ):
                return await self._parts(length, receive)
        except TimeoutError:
            raise BodyError(HTTPStatus.REQUEST_TIMEOUT) from None
        finally:
            self._unfinished[owner] -= 1
            if not self._unfinished[owner]:
                del self._unfinished[owner]

    async def _parts(self, length: int, receive: Receive) -> bytes:
        parts: list[bytes] = []
        missing = length
        while True:
            async with asyncio.timeout(self._patience.silence_s):
                event = await receive()
            if event["type"] != "http.request":
                raise BodyError(0)
            parts.append(event.get("body", b""))
            missing -= len(parts[-1])
            ended = not event.get("more_body", False)
            if missing < 0 or (ended and missing > 0):
                raise BodyError(HTTPStatus.BAD_REQUEST)
            if ended:
                return b"".join(parts)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Return a way to receive a body that was read already, and then what follows it."""
    given = False

    async def again() -> MutableMapping[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
