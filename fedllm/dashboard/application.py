"""The dashboard over HTTP on loopback: pages, their changes as they come, files to take away.

Everything is read and nothing can be changed through it. Pages that let their own name point to
loopback (DNS rebinding) are refused by the name that they ask for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from fedllm.dashboard.following import DOWNLOADS
from fedllm.dashboard.guarding import Guarded, for_a_foreign_page, own_host, plain
from fedllm.dashboard.live import changes
from fedllm.dashboard.pages import EVENTS, Page, events_of, framed, wrong_sections
from fedllm.dashboard.watching import Runs
from fedllm.errors import FedllmError
from fedllm.runs import names

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

# Of the report, which has its style within and needs nothing else.
_POLICY_OF_REPORT = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
MOST_VIEWERS = 500
_STATIC = {"style.css": "text/css", "live.js": "text/javascript"}


class Dashboard:
    """An ASGI application that shows runs.

    Parameters
    ----------
    runs : Runs
        Which.
    say : callable
        Writes a line of the log.

    Attributes
    ----------
    stopping : bool
        Set when no more is answered; pages that are open are let go.
    """

    def __init__(self, runs: Runs, say: Callable[[str], None]) -> None:
        self._runs, self._say = runs, say
        self._viewers = 0
        self.stopping = False
        self._static = {
            name: (files("fedllm.dashboard") / "static" / name).read_bytes() for name in _STATIC
        }
        self._app = Starlette(
            routes=[
                Route("/", self._home),
                Route("/run", self._run),
                Route("/compare", self._compare),
                Route(EVENTS, self._events),
                Route("/file", self._file),
                Route("/metrics", self._metrics),
                *(Route(f"/{name}", self._own_file) for name in _STATIC),
            ]
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        guarded = Guarded(scope, receive, send)
        try:
            refused = self._refused(scope)
            await guarded.give(self._app if refused is None else refused)
        except Exception as error:
            # Its words may name folders of this machine.
            self._say(f"error: {type(error).__name__} in {scope['path'][:40]!r}")
            await guarded.give_failure()

    def _refused(self, scope: Scope) -> Response | None:
        if own_host(scope) is None:
            return plain("this page is reached as localhost or 127.0.0.1 alone", 403)
        if scope["method"] not in ("GET", "HEAD"):
            return plain("this page is read, and nothing is changed through it", 405)
        if for_a_foreign_page(scope):
            return plain("a page of another host asks, and this one is for its own readers", 403)
        return plain("the command ends", 503) if self.stopping else None

    async def _home(self, request: Request) -> Response:
        single = self._runs.single
        if single is not None:
            return await self._page_of(single)
        page = await self._runs.shelf.now()
        return _html(framed(page, False, events_of(None)))

    async def _run(self, request: Request) -> Response:
        key = request.query_params.get("run", "")
        if key == self._runs.single:
            return RedirectResponse("/", 307)
        return await self._page_of(key)

    async def _page_of(self, key: str) -> Response:
        page = await self._runs.page(key)
        several = self._runs.single is None
        if page is None:
            return self._wrong(f"there is no run {key} here", "", 404)
        return _html(framed(page, several, events_of(key)))

    async def _compare(self, request: Request) -> Response:
        try:
            page = await self._runs.compared(request.query_params.getlist("run"))
        except FedllmError as error:
            return self._wrong(str(error.message), str(error.remedy), 422)
        return _html(framed(page, True))

    def _wrong(self, what: str, remedy: str, status: int) -> Response:
        page = Page("That cannot be shown", wrong_sections(what, remedy), over=True)
        return _html(framed(page, self._runs.single is None), status)

    async def _events(self, request: Request) -> Response:
        key = request.query_params.get("run")
        look: Callable[[], Awaitable[Page | None]] = self._runs.shelf.now
        if key is not None:
            wanted = key

            async def look() -> Page | None:
                return await self._runs.page(wanted)

        first = await look()
        if first is None:
            return plain("there is no such run here", 404)
        if self._viewers >= MOST_VIEWERS:
            return plain(f"{MOST_VIEWERS} pages are open already", 503)
        seen = request.query_params.get("seen", "")
        known = dict(first.sections) if seen == str(first.revision) else {}
        return StreamingResponse(self._changes(look, known), media_type="text/event-stream")

    async def _changes(
        self, look: Callable[[], Awaitable[Page | None]], known: dict[str, str]
    ) -> AsyncIterator[str]:
        """Yield each section that is not as the viewer knows it, until all is over."""
        self._viewers += 1
        try:
            async for told in changes(look, known, lambda: self.stopping):
                yield told
        finally:
            self._viewers -= 1

    async def _file(self, request: Request) -> Response:
        key, name = (request.query_params.get(word, "") for word in ("run", "name"))
        seen = await self._runs.seen(key)
        if seen is None or name not in DOWNLOADS or name not in seen.files:
            return self._wrong("there is no such file of a run here", "", 404)
        path = seen.folder / name
        if name == names.REPORT:
            headers = {"content-security-policy": _POLICY_OF_REPORT}
            return FileResponse(path, headers=headers, media_type="text/html; charset=utf-8")
        return FileResponse(path, filename=f"{Path(key).name}-{name}")

    async def _metrics(self, request: Request) -> Response:
        try:
            from fedllm.dashboard.prometheus import TYPE, page
        except ModuleNotFoundError:
            from fedllm.extras import remedy_of

            return plain(f"prometheus-client is not installed: {remedy_of('serve')}", 501)
        return Response(page(await self._runs.all.now()), media_type=TYPE)

    async def _own_file(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(self._static[name], media_type=_STATIC[name])


def _html(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="text/html")
