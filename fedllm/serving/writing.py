"""The texts of one request, from the engine's thread to whoever waits for them."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from fedllm.models.generation import Writing
from fedllm.serving.door import failure
from fedllm.serving.engine import Engine
from fedllm.serving.forms import Form, Usage
from fedllm.serving.guard import Guard, GuardedText
from fedllm.serving.lane import Ending, Lane, Ticket
from fedllm.serving.metrics import Metrics
from fedllm.tasks.prompting import Prompt

STATUS = {"timeout": 504, "failed": 500, "stopping": 503}


class Unwritten(Exception):
    """An answer that did not come to its end, and the status that says so."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes
    ----------
    tenant, model : str
        Who asked, and which model.
    prompts : sequence of Prompt
        A text for each.
    writing : Writing
        How.
    gap : str
        What an answer begins with, and is no part of it.
    deadline : float
        Of the monotonic clock.
    """

    tenant: str
    model: str
    prompts: Sequence[Prompt] = field(repr=False)
    writing: Writing = field(repr=False)
    gap: str
    deadline: float


@dataclass(eq=False)
class _Text:
    """One text as it comes from the engine's thread."""

    number: int
    ticket: Ticket
    guarded: GuardedText | None
    gap: str
    finish: Ending | None = None

    def piece(self, new: str, ending: Ending | None) -> str:
        """Return what of a piece can be shown now; nothing more once the text has ended."""
        if self.finish is not None:
            return ""
        shown = self._shown(new, ending)
        self.finish = ending
        return shown

    def fail(self) -> None:
        """End the text, and let nobody write it on."""
        self.finish, self.ticket.gone = "failed", True

    def _shown(self, new: str, ending: Ending | None) -> str:
        if new and self.gap:
            new, self.gap = new.removeprefix(self.gap), ""
        if self.guarded is None:
            return new
        shown = self.guarded.push(new)
        return shown if ending is None else shown + self.guarded.end()


class Texts:
    """The texts of one request.

    Parameters
    ----------
    order : Order
        What is asked.
    lane : Lane
        Whose model writes.
    guard : Guard, optional
        Masks what is shown.
    metrics : Metrics
        Counts.
    """

    def __init__(self, order: Order, lane: Lane, guard: Guard | None, metrics: Metrics) -> None:
        self._order, self._metrics = order, metrics
        self._queue: asyncio.Queue[tuple[int, str, Ending | None]] = asyncio.Queue()
        self._started = time.monotonic()
        loop = asyncio.get_running_loop()

        def heard_of(number: int) -> Callable[[str, Ending | None], None]:
            def heard(piece: str, ending: Ending | None) -> None:
                # A loop that is closed has nobody who waits.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._queue.put_nowait, (number, piece, ending))

            return heard

        self._texts = [
            _Text(
                number,
                Ticket(
                    lane,
                    order.tenant,
                    prompt.ids,
                    _repeated(order.writing, number, order.prompts),
                    heard_of(number),
                    order.deadline,
                ),
                guard.stream() if guard else None,
                order.gap,
            )
            for number, prompt in enumerate(order.prompts)
        ]

    def submit(self, engine: Engine) -> None:
        """Hand the texts to the engine; errors as `Engine.submit`."""
        engine.submit([text.ticket for text in self._texts])

    async def _pieces(self) -> AsyncIterator[tuple[_Text, str]]:
        """Yield pieces as they come; whoever stops listening stops the writing."""
        left, first = len(self._texts), True
        try:
            while left:
                number, new, ending = await self._queue.get()
                if first:
                    self._metrics.first.observe(time.monotonic() - self._started)
                    first = False
                text, shown = self._texts[number], ""
                try:
                    shown = text.piece(new, ending)
                except Exception as error:
                    # Its words may quote the text.
                    self._metrics.failed(type(error).__name__)
                    text.fail()
                left -= ending is not None
                if shown or text.finish is not None:
                    yield text, shown
        finally:
            for text in self._texts:
                text.ticket.gone = True
            self._count()

    def _count(self) -> None:
        usage, tokens = self._usage(), self._metrics.tokens
        counted = {"read": usage["prompt_tokens"], "written": usage["completion_tokens"]}
        for kind, count in counted.items():
            tokens.labels(self._order.tenant, self._order.model, kind).inc(count)
        for text in self._texts:
            self._metrics.reuse(text.ticket.reused)
            if text.guarded is not None:
                self._metrics.mask(text.guarded.found)

    def _usage(self) -> Usage:
        read = sum(len(prompt.ids) for prompt in self._order.prompts)
        written = sum(text.ticket.tokens for text in self._texts)
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": sum(t.ticket.reused for t in self._texts)},
        }

    async def whole(self, form: Form, leaving: Callable[[], Any]) -> dict[str, Any]:
        """Return the whole answer.

        Parameters
        ----------
        leaving : callable
            Returns what can be awaited, and ends when whoever asked has gone away.

        Raises
        ------
        Unwritten
            If it did not come to its end; also where nobody waits for it any more.
        """
        working = asyncio.create_task(self._collected())
        gone = asyncio.create_task(leaving())
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise Unwritten(499)
            shown = working.result()
        finally:
            working.cancel()
            gone.cancel()
        for text in self._texts:
            if text.finish in STATUS:
                raise Unwritten(STATUS[str(text.finish)])
        told = [(shown[text.number], str(text.finish)) for text in self._texts]
        return form.whole(told, self._usage())

    async def _collected(self) -> list[str]:
        shown = [""] * len(self._texts)
        async for text, piece in self._pieces():
            shown[text.number] += piece
        return shown

    async def streamed(self, form: Form, include_usage: bool) -> AsyncIterator[bytes]:
        """Yield server-sent events, as pieces come."""
        seen: set[int] = set()
        async for text, piece in self._pieces():
            if text.finish in STATUS:
                yield b"data: " + failure(STATUS[str(text.finish)]) + b"\n\n"
                return
            first = text.number not in seen
            seen.add(text.number)
            yield _event(form.part(text.number, piece, text.finish, first))
        if include_usage:
            yield _event(form.last(self._usage()))
        yield b"data: [DONE]\n\n"


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


def _repeated(writing: Writing, number: int, prompts: Sequence[Prompt]) -> Writing:
    """Give the same prompt of one request other numbers each time."""
    before = sum(prompt.ids == prompts[number].ids for prompt in prompts[:number])
    seed = writing.sampling.seed
    if not before or seed is None:
        return writing
    return replace(writing, sampling=replace(writing.sampling, seed=seed + before))
