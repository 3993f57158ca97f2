"""A headless Chromium, or why there is none; and what else tests of pages need.

Wants Debian's package ``chromium`` and the extra ``browser`` of pyproject.toml.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest


@contextmanager
def headless() -> Iterator[Any]:
    """Start the browser; skips the test, with the reason, where it or its driver is missing."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is missing")
    with api.sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def watched_pages(chromium: Any, tolerated: str = "") -> Iterator[Callable[..., Any]]:
    """Open pages, and hold against them whatever they ask of others or complain of.

    What a complaint may begin with is ``tolerated``, where that is not empty.
    """
    hosts, complaints, contexts = set[Any](), list[str](), list[Any]()

    def make(**options: Any) -> Any:
        contexts.append(chromium.new_context(**options))
        # On a machine with much else to do.
        contexts[-1].set_default_timeout(180_000)
        page = contexts[-1].new_page()
        page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text))
        return page

    yield make
    for context in contexts:
        context.close()
    assert hosts - {None, ""} <= {"127.0.0.1"}
    assert not [one for one in complaints if not (tolerated and one.startswith(tolerated))]


class Elements(HTMLParser):
    """Notes the elements of a page, and which of them would load or do something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found = list[tuple[str, dict[str, str | None]]]()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


# What a browser says of a form that another page sent.
FOREIGN = (
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "https://127.0.0.1"},
    {"origin": ""},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "none"},
)
