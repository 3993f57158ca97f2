"""Ranking in a browser of this machine: one page on loopback, for whoever has its address.

The address holds a secret of 256 bits and is all that opens the page; there is no cookie, so no
other page can make a browser act for the rater. Other programs of this machine, and pages that let
their own name point to loopback (DNS rebinding), do not know it and are refused. Nothing is logged
but the kind of an error.
"""

from __future__ import annotations

import hmac
import re
import secrets
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from fedllm.errors import FedllmError
from fedllm.federation.transport.bodies import Bodies, BodyError, Patience, Receive
from fedllm.rating.page import Page
from fedllm.rating.rankings import RankingError, dense
from fedllm.rating.session import BACK, QUIT, UNDO, Item, Session
from fedllm.serving.page_forms import Form, form_of, headers_of, wrong_form

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_MOST_BYTES = 16 << 10
_HOST = re.compile(rb"(?:localhost|127\.0\.0\.1)(?::\d{1,5})?")
_STALE = "that was said of another prompt and was not kept; this is the one to rank now"
_CHANGED = "that was asked on an older page and was not done; this is where you are now"
_REFUSED = {
    400: "the form cannot be read",
    403: "this page is reached from its own address alone",
    404: "open the address that the command printed, as a whole",
    405: "this page is read, or its form is sent",
    408: "the form came too slowly",
    413: "the form is too large",
    415: "the form is of another kind",
    429: "too many forms at once",
    500: "an error of the program itself; its terminal has the kind",
    503: "the command ends",
}


class RatingPage:
    """An ASGI application for one rater.

    Parameters
    ----------
    session : Session
        Where the rater is.
    stop : threading.Event
        Set when the rater leaves.
    say : callable
        Writes a line on the command's terminal.

    Attributes
    ----------
    path : str
        What opens it.
    stopping : bool
        Set when no more is taken.
    """

    def __init__(self, session: Session, stop: threading.Event, say: Callable[[str], None]) -> None:
        self._session, self._stop, self._say = session, stop, say
        self.path = f"/{secrets.token_urlsafe(32)}/"
        self.stopping = False
        self._bodies = Bodies(Patience(silence_s=10.0, bytes_per_s=1024.0, at_once=8))
        # Requests come at once, and a session is of one rater.
        self._turn = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope, receive)
        except BodyError as error:
            if not error.status:
                return
            response = _refusal(error.status)
        except Exception as error:
            # Its words may quote a prompt.
            self._say(f"error: {type(error).__name__}")
            response = _refusal(500)
        await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        headers = headers_of(scope["headers"])
        method, refused = scope["method"], self._refused(scope, headers)
        if refused:
            return _refusal(refused)
        if method == "GET":
            return await run_in_threadpool(self._page)
        length = int(headers[b"content-length"][0])
        form = form_of(await self._bodies.read(b"", length, receive))
        if form is None:
            return _refusal(400)
        return await run_in_threadpool(self._obeyed, form)

    def _refused(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> int:
        """Return the status of a request that is not answered, 0 of one that is."""
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0].lower()):
            return 403
        if not hmac.compare_digest(str(scope["path"]).encode(), self.path.encode()):
            return 404
        if scope["method"] not in ("GET", "POST"):
            return 405
        if self.stopping:
            return 503
        return wrong_form(headers, hosts[0], _MOST_BYTES) if scope["method"] == "POST" else 0

    def _page(self, notice: str = "", words: str = "", status: int = 200) -> Response:
        with self._turn:
            return self._shown(notice, words, status)

    def _shown(self, notice: str = "", words: str = "", status: int = 200) -> Response:
        session, item = self._session, None
        try:
            item = session.item()
            waiting = item is None and not session.finished
        except FedllmError as error:
            notice, waiting, status = str(error), False, 500
        found = Page(
            self.path, session.progress(), item, waiting, False, notice, words, session.step
        )
        return _response(found, status)

    def _obeyed(self, form: Form) -> Response:
        """Do what a form says, and send the browser on to what is shown then."""
        with self._turn:
            session, order = self._session, form.get("order", "")
            words = form.get("words", "") if order in ("rank", "places") else order
            if words.strip().lower() == QUIT:
                over = Page(self.path, session.progress(), over=True)
                return _response(over, after=BackgroundTask(self._stop.set))
            try:
                item = session.item()
                if stale := _stale(form, words, session.step, item):
                    return self._shown(stale, status=409)
                if order == "places" and item is not None:
                    session.rank(item, _places(form, len(item.shown)))
                    notice = ""
                else:
                    notice = session.obey(words, item)
            except RankingError as error:
                return self._shown(str(error), words, 422)
            except FedllmError as error:
                return self._shown(str(error), words, 500)
            if notice:
                return self._shown(notice)
        return Response(status_code=303, headers={"location": self.path})


def _stale(form: Form, words: str, step: int, item: Item | None) -> str:
    """Say why a form is not of what is shown now; empty where it is."""
    if words.strip().lower() in (BACK, UNDO):
        # A form that is sent twice goes one step.
        return "" if form.get("step") == str(step) else _CHANGED
    return "" if form.get("unit") == (item.question.unit if item else None) else _STALE


def _places(form: Form, count: int) -> tuple[int, ...]:
    given = [form.get(f"place-{number}", "") for number in range(1, count + 1)]
    allowed = {str(place) for place in range(1, count + 1)}
    if not set(given) <= allowed:
        raise RankingError("choose a place for every answer")
    return dense([int(place) for place in given])


def _response(page: Page, status: int = 200, after: BackgroundTask | None = None) -> Response:
    content, headers = page.html()
    kind = "text/html; charset=utf-8"
    return Response(content, status, headers, media_type=kind, background=after)


def _refusal(status: int) -> Response:
    headers = {"connection": "close", "cache-control": "no-store"}
    return Response(_REFUSED[status], status, headers, media_type="text/plain")
