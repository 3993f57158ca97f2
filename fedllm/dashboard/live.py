"""The sections of a page that change, sent to those who have it open (server-sent events)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from fedllm.dashboard.pages import Page

_LOOK_S, _SIGN_OF_LIFE_S = 1.0, 15.0


async def changes(
    look: Callable[[], Awaitable[Page | None]],
    known: dict[str, str],
    stopping: Callable[[], bool],
) -> AsyncIterator[str]:
    """Yield each section that is not as the viewer knows it, until all is over."""
    yield "retry: 3000\n\n"
    quiet_s = 0.0
    while not stopping() and (page := await look()) is not None:
        new = {name: html for name, html in page.sections.items() if known.get(name) != html}
        if new:
            known.update(new)
            told = {"title": page.title, "said": page.said, "sections": new}
            yield _event("sections", told)
            quiet_s = 0.0
        if page.over:
            yield _event("over", page.said)
            return
        if quiet_s >= _SIGN_OF_LIFE_S:
            yield ": still here\n\n"
            quiet_s = 0.0
        await asyncio.sleep(_LOOK_S)
        quiet_s += _LOOK_S


def _event(kind: str, value: object) -> str:
    return f"event: {kind}\ndata: {json.dumps(value, ensure_ascii=False)}\n\n"
