"""A site's page over HTTP on loopback, for whoever has its token.

The token is asked for once; then a cookie opens the page. Cookies are a host's and not a port's,
so that another user's program on another port of loopback would be sent this one: it is bound to a
path that nobody can guess, under which no other program is ever asked for anything. What changes
something is a form with a secret of its own, from this page alone.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import AsyncIterator, Callable
from importlib.resources import files
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from fedllm.dashboard.guarding import (
    HEADERS,
    Guarded,
    Scope,
    Send,
    for_a_foreign_page,
    own_host,
    plain,
)
from fedllm.dashboard.live import changes
from fedllm.dashboard.pages import Page
from fedllm.dashboard.watching import Shared
from fedllm.errors import FedllmError
from fedllm.federation.transport.bodies import Bodies, BodyError, Patience, Receive
from fedllm.overview.pages import entry_page, framed, site_page, wrong_page
from fedllm.overview.standing import Look, Standing
from fedllm.privacy.ledger.audit import checked_export
from fedllm.serving.page_forms import Form, form_of, headers_of, wrong_form

_MOST_BYTES, _MOST_VIEWERS, _LOOK_S = 4 << 10, 50, 1.0
_COOKIE = "fedllm_site"
_STATIC = {"style.css": "text/css", "live.js": "text/javascript"}
# With no-referrer a browser would not say where a form was sent from.
_HEADERS = HEADERS | {"referrer-policy": "same-origin"}
_ACTIONS = ("pause", "resume", "stop")


class SitePage:
    """An ASGI application that shows one site to its people.

    Parameters
    ----------
    look : Look
        Looks at the site.
    token : str
        What opens it.
    say : callable
        Writes a line of the log; no line holds a token, a cookie or an address.
    clock : callable
        Gives seconds.

    Attributes
    ----------
    base : str
        The path of the page.
    stopping : bool
        Set when no more is answered.
    """

    def __init__(
        self, look: Look, token: str, say: Callable[[str], None], clock: Callable[[], float]
    ) -> None:
        self._look, self._token, self._say = look, token, say
        self.base = f"/{secrets.token_urlsafe(16)}/"
        self.stopping = False
        self._cookie, self._form = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._shared = Shared(self._page, _LOOK_S, clock)
        self._last: tuple[Standing | None, Page] = None, Page("", {})
        self._bodies = Bodies(Patience(silence_s=10.0, bytes_per_s=1024.0, at_once=8))
        self._viewers = 0
        folder = files("fedllm.dashboard") / "static"
        self._static = {f"/{name}": (folder / name).read_bytes() for name in _STATIC}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        guarded = Guarded(scope, receive, send, _HEADERS)
        try:
            await guarded.give(await self._answer(scope, receive))
        except BodyError as error:
            if error.status:
                await guarded.give(plain("the form did not come as it should", error.status))
        except Exception as error:
            # Its words may name folders of this machine, and its path opens the page.
            self._say(f"error: {type(error).__name__}")
            await guarded.give_failure()

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        refused, path = self._refused(scope), str(scope["path"])
        if refused is not None:
            return refused
        if scope["method"] == "POST":
            return await self._posted(scope, receive, path)
        if path in self._static:
            return Response(self._static[path], media_type=_STATIC[path.removeprefix("/")])
        if path == "/enter":
            query = parse_qs(scope["query_string"].decode("ascii", "replace"))
            return self._entered(query.get("token", [""])[0])
        if not self._is_inside(scope, path):
            return _entry(401, self.base if _same(path, self.base) else "")
        return await self._inside(scope, path.removeprefix(self.base))

    def _refused(self, scope: Scope) -> Response | None:
        if own_host(scope) is None:
            return plain("this page is reached as localhost or 127.0.0.1 alone", 403)
        if scope["method"] not in ("GET", "POST"):
            return plain("this page is read, or its forms are sent", 405)
        if for_a_foreign_page(scope):
            return plain("a page of another host asks, and this one is for its own readers", 403)
        return plain("the command ends", 503) if self.stopping else None

    def _is_inside(self, scope: Scope, path: str) -> bool:
        """Whether a request is for the page, and from a browser that was let in."""
        cookies = headers_of(scope["headers"]).get(b"cookie", [])
        pairs = [pair.strip().partition("=") for one in cookies for pair in _text(one).split(";")]
        given = [value for name, _, value in pairs if name == _COOKIE]
        there = _same(path[: len(self.base)], self.base)
        return any([_same(value, self._cookie) for value in given]) and there

    def _entered(self, token: str) -> Response:
        if not token:
            return _entry(401)
        if not _same(token.strip(), self._token):
            return _entry(403)
        cookie = f"{_COOKIE}={self._cookie}; Path={self.base}; HttpOnly; SameSite=Strict"
        return Response(status_code=303, headers={"location": self.base, "set-cookie": cookie})

    async def _posted(self, scope: Scope, receive: Receive, path: str) -> Response:
        headers, host = headers_of(scope["headers"]), own_host(scope)
        if refused := wrong_form(headers, host or b"", _MOST_BYTES):
            return plain("this form is not taken: send it from the page itself", refused)
        if path != "/enter" and not self._is_inside(scope, path):
            return _entry(401)
        length = int(headers[b"content-length"][0])
        form = form_of(await self._bodies.read(b"", length, receive))
        if form is None:
            return plain("the form cannot be read", 400)
        if path == "/enter":
            return self._entered(form.get("token", ""))
        if not _same(form.get("form", ""), self._form):
            return self._wrong("That form is of an earlier page.", "Go back and send it anew.", 403)
        return await self._obeyed(path.removeprefix(self.base), form)

    async def _obeyed(self, action: str, form: Form) -> Response:
        if action not in _ACTIONS:
            return self._wrong("There is nothing of that name.", "Go back to the page.", 404)
        if action == "stop" and form.get("sure") != "yes":
            return self._wrong(
                "The service was not stopped: the box beside the button was not ticked.",
                "Tick it, if the service is to end.",
                422,
            )
        try:
            await run_in_threadpool(self._do, action)
        except FedllmError as error:
            return self._wrong(error.message, error.remedy, 500)
        self._shared.forget()
        return Response(status_code=303, headers={"location": self.base})

    def _do(self, action: str) -> None:
        brake = self._look.brake
        if action == "resume":
            brake.release()
        elif action == "pause":
            brake.pause("the site's page")
        else:
            brake.end("the site's page")

    async def _inside(self, scope: Scope, name: str) -> Response:
        if name == "":
            page = await self._shared.now()
            return _html(framed(page, self.base, live=True))
        if name == "events":
            return await self._events(scope)
        if name == "ledger.jsonl":
            return await run_in_threadpool(self._export)
        return self._wrong("There is nothing of that name.", "Go back to the page.", 404)

    async def _events(self, scope: Scope) -> Response:
        if self._viewers >= _MOST_VIEWERS:
            return plain(f"{_MOST_VIEWERS} pages are open already", 503)
        first = await self._shared.now()
        seen = parse_qs(scope["query_string"].decode("ascii", "replace")).get("seen", [""])[0]
        known = dict(first.sections) if seen == str(first.revision) else {}
        return StreamingResponse(self._changes(known), media_type="text/event-stream")

    async def _changes(self, known: dict[str, str]) -> AsyncIterator[str]:
        self._viewers += 1
        try:
            async for told in changes(self._shared.now, known, lambda: self.stopping):
                yield told
        finally:
            self._viewers -= 1

    def _export(self) -> Response:
        kit = self._look.kit
        try:
            head, content = checked_export(self._look.ledger, kit.public_key)
        except FedllmError as error:
            return self._wrong(error.message, error.remedy, 409)
        name = f"ledger-{kit.name}-{head.sequence}.jsonl"
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(content, headers=headers, media_type="application/jsonl")

    def _page(self) -> Page:
        standing, (before, page) = self._look(), self._last
        if standing != before:
            made = site_page(standing, self.base, self._form)
            revision = page.revision + (made.sections != page.sections)
            page = Page(made.title, made.sections, revision, said=made.said)
            self._last = standing, page
        return page

    def _wrong(self, what: str, remedy: str, status: int) -> Response:
        return _html(framed(wrong_page(what, remedy, self.base), self.base), status)


def _entry(status: int, again: str = "") -> Response:
    """Return the page that asks for the token; ``again`` is where a browser may try once more."""
    return _html(framed(entry_page(status == 403, again), ""), status)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _html(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="text/html")
