"""What stands before a service: sizes, time, keys, and a log without texts.

A request is refused before its body is read where its key or size is wrong, and given up when it
comes too slowly. What goes wrong inside is told by its kind alone: an error's own words may quote
what was asked.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from fedllm.federation.transport.bodies import Bodies, BodyError, Patience, Receive, replayed
from fedllm.serving.keys import Keys, Tenant
from fedllm.serving.metrics import NOBODY, Metrics
from fedllm.serving.share import Share

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

HEALTH = "/health"
ENDPOINTS = {
    "/v1/models": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/embeddings": "POST",
    "/v1/classify": "POST",
    HEALTH: "GET",
    "/metrics": "GET",
}
_METHODS = frozenset(["GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"])
_MOST_DIGITS = 9
_LONGEST_SHOWN = 100
# What a program of this machine calls it; a web page reaches loopback by another name, which it
# lets point there (DNS rebinding).
_LOCAL = re.compile(rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?", re.IGNORECASE)
_WORDS = {
    400: "the request cannot be read",
    401: "the key is missing or wrong: Authorization: Bearer KEY",
    403: "without keys it is reached as localhost, 127.0.0.1 or [::1] alone",
    404: "there is no such path here",
    405: "this path takes another method",
    408: "the request came too slowly",
    411: "the request does not say how long its body is (Content-Length)",
    413: "the request is larger than this service takes",
    429: "too many requests at once",
    499: "nobody waits for the answer",
    500: "an error of the service itself; its log has the kind",
    503: "the service stops, or nothing writes texts any more",
    504: "the answer took longer than this service works on one",
}
_KINDS = {401: "authentication_error", 429: "rate_limit_error"}


@dataclass(frozen=True)
class Limits:
    """What one request may take.

    Attributes
    ----------
    body_bytes : int
        Of its body.
    time_s : float
        From its headers to the end of its answer.
    at_once : int
        Requests that are answered at the same time; more are refused.
    """

    body_bytes: int = 1 << 20
    time_s: float = 120.0
    at_once: int = 256


def failure(status: int, message: str = "", **more: str | None) -> bytes:
    """Return an error in the form of OpenAI's API."""
    told: dict[str, Any] = {
        "message": message or _WORDS[status],
        "type": _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": None,
        "code": None,
    }
    return json.dumps({"error": told | more}).encode()


class Gate:
    """Lets requests in, and tells of each how it went.

    Parameters
    ----------
    app : ASGI application
        Finds the tenant in ``scope["state"]["tenant"]``.
    keys, limits, metrics
        Of the service.
    say : callable
        Writes a line of the log.
    writes : callable
        Whether there is still who writes.
    """

    def __init__(
        self,
        app: App,
        keys: Keys,
        limits: Limits,
        metrics: Metrics,
        say: Callable[[str], None],
        writes: Callable[[], bool] = lambda: True,
    ) -> None:
        self._app = app
        self._keys = keys
        self._limits = limits
        self._metrics = metrics
        self._say = say
        self._writes = writes
        self._bodies = Bodies(Patience(silence_s=10.0, bytes_per_s=4096.0, at_once=limits.at_once))
        self._share = Share(limits.at_once, keys.shared)
        self._answering: Counter[str] = Counter()
        self.stopping = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        started, path = time.monotonic(), str(scope["path"])
        endpoint = path if path in ENDPOINTS else "other"
        tenant = self._tenant(scope)
        heard = _Heard(send)
        try:
            async with asyncio.timeout(self._limits.time_s):
                await self._answer(scope, tenant, receive, heard)
        except TimeoutError:
            await heard.refuse(504)
        except Exception as error:
            self._metrics.failed(type(error).__name__)
            self._say(f"error: {type(error).__name__} in {endpoint}")
            await heard.refuse(500)
        finally:
            spent = time.monotonic() - started
            name = NOBODY if tenant is None else tenant.name
            self._metrics.requests.labels(name, endpoint, str(heard.status)).inc()
            self._metrics.seconds.labels(endpoint).observe(spent)
            if path != HEALTH:
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._say(f"{method} {endpoint} {heard.status} {name} {spent:.2f}s")

    def _tenant(self, scope: Scope) -> Tenant | None:
        headers = dict(scope["headers"])
        return self._keys.tenant(headers.get(b"authorization", b"").decode("latin-1"))

    async def _answer(
        self, scope: Scope, tenant: Tenant | None, receive: Receive, heard: _Heard
    ) -> None:
        path = scope["path"]
        if not self._keys.tenants and not _is_local(scope):
            await heard.refuse(403)
        elif path not in ENDPOINTS:
            await heard.refuse(404, message=_no_path(path))
        elif scope["method"] != ENDPOINTS[path]:
            await heard.refuse(405, message=f"{path} takes {ENDPOINTS[path]}")
        elif path == HEALTH:
            sound = not self.stopping and self._writes()
            await heard.say(200, b'{"status":"ok"}') if sound else await heard.refuse(503)
        elif tenant is None:
            await heard.refuse(401)
        elif self.stopping:
            await heard.refuse(503)
        elif not self._share.allows(self._answering[tenant.name], self._answering.total(), 1):
            await heard.refuse(429, (b"retry-after", b"1"))
        else:
            self._answering[tenant.name] += 1
            try:
                await self._let_in(scope, tenant, receive, heard)
            finally:
                self._answering[tenant.name] -= 1

    async def _let_in(self, scope: Scope, tenant: Tenant, receive: Receive, heard: _Heard) -> None:
        headers = dict(scope["headers"])
        if scope["method"] == "GET":
            await self._app(_known(scope, tenant), receive, heard)
        elif status := self._wrong_size(headers):
            await heard.refuse(status)
        else:
            length = int(headers[b"content-length"])
            try:
                body = await self._bodies.read(tenant.name.encode(), length, receive)
            except BodyError as error:
                if error.status:
                    await heard.refuse(error.status)
                return
            await self._app(_known(scope, tenant), replayed(body, receive), heard)

    def _wrong_size(self, headers: dict[bytes, bytes]) -> int:
        """Return the status of a body that is not read, 0 of one that is."""
        length = headers.get(b"content-length", b"")
        if b"transfer-encoding" in headers or not length:
            return 411
        if not length.isdigit():
            return 400
        if len(length) > _MOST_DIGITS or int(length) > self._limits.body_bytes:
            return 413
        return 0


def _no_path(path: str) -> str:
    shown = path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}..."
    return f"there is no {shown} here; there are {', '.join(ENDPOINTS)}"


def _is_local(scope: Scope) -> bool:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return bool(hosts) and all(_LOCAL.fullmatch(host) for host in hosts)


class _Heard:
    """Notes what was sent: an answer that was begun cannot become another."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 499
        self.begun = False

    async def __call__(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.begun, self.status = True, event["status"]
        await self._send(event)

    async def say(self, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        """Answer, unless an answer was begun; that one is then cut off."""
        if self.begun:
            return
        told = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        await self({"type": "http.response.start", "status": status, "headers": told})
        await self({"type": "http.response.body", "body": body})

    async def refuse(self, status: int, *headers: tuple[bytes, bytes], message: str = "") -> None:
        """Answer with an error, and hang up: an unread body may follow."""
        await self.say(status, failure(status, message), *headers, (b"connection", b"close"))


def _known(scope: Scope, tenant: Tenant) -> Scope:
    return {**scope, "state": {**scope.get("state", {}), "tenant": tenant}}
