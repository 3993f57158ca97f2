"""What every page on loopback holds against other names, other hosts' pages and what it might load.

Pages that let their own name point to loopback (DNS rebinding) are refused by the name that they
ask for; what another host's page embeds, by what the browser says of it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any

from starlette.responses import Response

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HOST = re.compile(rb"(?:localhost|127\.0\.0\.1)(?::\d{1,5})?", re.IGNORECASE)
_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def own_host(scope: Scope) -> bytes | None:
    """Return the name by which a page was asked for; None where it is not one of loopback's."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return hosts[0] if len(hosts) == 1 and _HOST.fullmatch(hosts[0]) else None


def for_a_foreign_page(scope: Scope) -> bool:
    """Whether a browser asks for something within another host's page, which could hold places.

    To come here by a link is no such thing. What is no browser says nothing of it.
    """
    told = dict(scope["headers"])
    foreign = told.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    return foreign and told.get(b"sec-fetch-mode") != b"navigate"


def guarded_headers(
    headers: Iterable[tuple[bytes, bytes]], own: Mapping[str, str] = HEADERS
) -> list[tuple[bytes, bytes]]:
    """Return the headers of an answer, with those of ``own`` that it does not have."""
    given = list(headers)
    there = {name.lower() for name, _ in given}
    more = [(name.encode(), value.encode()) for name, value in own.items()]
    return [*given, *((name, value) for name, value in more if name not in there)]


class Guarded:
    """The way out of an answer: with the headers of every page, and known whether it has begun.

    Parameters
    ----------
    scope, receive, send
        As ASGI has them.
    own : mapping of str to str
        Headers that every answer gets where it does not have them.
    """

    def __init__(
        self, scope: Scope, receive: Any, send: Send, own: Mapping[str, str] = HEADERS
    ) -> None:
        self._scope, self._receive, self._send, self._own = scope, receive, send, own
        self._begun = False

    async def give(self, answer: Any) -> None:
        """Let an ASGI application, such as a response, answer."""
        await answer(self._scope, self._receive, self._out)

    async def give_failure(self) -> None:
        """Say that the program itself failed, where no other answer has begun."""
        if not self._begun:
            await self.give(plain("an error of the program itself; its terminal has the kind", 500))

    async def _out(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self._begun = True
            event = {**event, "headers": guarded_headers(event.get("headers", []), self._own)}
        await self._send(event)


def plain(words: str, status: int) -> Response:
    """Return an answer of a few words, after which the connection ends."""
    return Response(words, status, {"connection": "close"}, media_type="text/plain")
