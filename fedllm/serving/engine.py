"""Writes for many at once: who waits, who is written for, and what happens when it is too much."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fedllm.models.generation import Generator, Writing
from fedllm.models.prompt_cache import PromptCache
from fedllm.models.running_batch import Row, RunningBatch, row_of, running_batch_of

Ending = Literal["stop", "length", "timeout", "failed", "stopping"]


class Busy(Exception):
    """Too many wait already; ``retry_after_s`` is when to come again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class Ticket:
    """One text that somebody waits for.

    Attributes
    ----------
    lane : Lane
        Whose model writes it.
    tenant : str
        Who asked: what is kept of a prompt is for nobody else.
    prompt : tuple of int
    writing : Writing
    heard : callable
        Told each piece of text, and at the end why it ended; in the engine's thread.
    deadline : float
        Of the monotonic clock, after which nobody waits any more.
    gone : bool
        Set by anybody: whoever asked went away.
    tokens : int
        Written so far.
    reused : int
        Of the prompt's, how many were kept from before and not read again.
    """

    lane: Lane
    tenant: str
    prompt: tuple[int, ...] = field(repr=False)
    writing: Writing = field(repr=False)
    heard: Callable[[str, Ending | None], None] = field(repr=False)
    deadline: float
    gone: bool = False
    tokens: int = 0
    reused: int = 0
    row: Row | None = field(default=None, repr=False)


class Lane:
    """One model's texts under way.

    A decoder's grow and shrink together; an encoder-decoder, and a decoder in which padding
    counts, writes batches of what waits.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.batch = running_batch_of(generator)
        self.tickets: dict[Row, Ticket] = {}


class Engine:
    """One thread that writes for all.

    Parameters
    ----------
    rows : int
        Texts written at once, over all models.
    waiting : int
        Texts that may wait beside them.
    noticed : callable
        Told the kind of an error that ended texts; never what was asked.
    cache : PromptCache, optional
        What is kept of prompts, for a decoder's; forgotten at the end, and when something breaks.
    """

    def __init__(
        self,
        rows: int,
        waiting: int,
        noticed: Callable[[str], None] = lambda kind: None,
        cache: PromptCache | None = None,
    ) -> None:
        self._cache = PromptCache(0) if cache is None else cache
        self._rows = rows
        self._most_waiting = waiting
        self._noticed = noticed
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._lanes: list[Lane] = []
        self._stopping = False
        # Seconds that a text takes, as of the last few.
        self._usual_s = 1.0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Take nothing new, finish what is under way, and give up the rest after some time."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(grace_s)
        if self._thread.is_alive():
            for lane in self._lanes:
                for ticket in list(lane.tickets.values()):
                    ticket.gone = True
            self._thread.join(grace_s)

    @property
    def load(self) -> tuple[int, int]:
        """How many texts are written, and how many wait."""
        return sum(len(lane.tickets) for lane in self._lanes), len(self._waiting)

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Take texts to write, all or none.

        Raises
        ------
        Busy
            If more would wait than may.
        """
        with self._changed:
            if self._stopping or len(self._waiting) + len(tickets) > self._most_waiting:
                turns = math.ceil((len(self._waiting) + 1) / self._rows)
                raise Busy(max(1, math.ceil(turns * self._usual_s)))
            self._waiting.extend(tickets)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                left_s = self._cache.expire()
                while not (self._waiting or self._stopping or self._under_way()):
                    self._changed.wait(left_s)
                    left_s = self._cache.expire()
                if self._stopping and not self._under_way():
                    left, self._waiting = list(self._waiting), deque()
                    break
                new = self._admitted()
            self._add(new)
            for lane in self._lanes:
                self._step(lane)
        self._cache.clear()
        for ticket in left:
            ticket.heard("", "stopping")

    def _under_way(self) -> bool:
        return any(lane.tickets for lane in self._lanes)

    def _admitted(self) -> list[Ticket]:
        """Take from those that wait as many as there is room for, the earliest first."""
        room = self._rows - sum(len(lane.tickets) for lane in self._lanes)
        if self._stopping:
            return []
        found: list[Ticket] = []
        while self._waiting and len(found) < room:
            ticket = self._waiting.popleft()
            if not ticket.gone:
                found.append(ticket)
        return found

    def _add(self, tickets: Sequence[Ticket]) -> None:
        now = time.monotonic()
        late = [ticket for ticket in tickets if ticket.deadline <= now]
        for ticket in late:
            ticket.heard("", "timeout")
        for lane in dict.fromkeys(ticket.lane for ticket in tickets):
            mine = [t for t in tickets if t.lane is lane and t not in late]
            if lane not in self._lanes:
                self._lanes.append(lane)
            if not mine:
                continue
            if lane.batch is None:
                self._write(lane, mine)
                continue
            for ticket in mine:
                kept = self._cache.of(lane, ticket.tenant)
                ticket.row = row_of(lane.generator, ticket.prompt, ticket.writing, kept)
                lane.tickets[ticket.row] = ticket
            self._guarded(lane, lane.batch, [t.row for t in mine if t.row])

    def _step(self, lane: Lane) -> None:
        if lane.batch is None or not lane.tickets:
            return
        now = time.monotonic()
        gone = {r: t for r, t in lane.tickets.items() if t.gone or t.deadline <= now}
        if gone:
            lane.batch.drop(list(gone))
            for row, ticket in gone.items():
                del lane.tickets[row]
                ticket.heard("", "timeout")
        self._guarded(lane, lane.batch, None)

    def _guarded(self, lane: Lane, batch: RunningBatch, new: list[Row] | None) -> None:
        """Read new prompts, or write a token of each text; what breaks ends the lane's texts."""
        started = time.monotonic()
        try:
            pieces = batch.step() if new is None else batch.add(new)
        except Exception as error:
            self._failed(lane, error)
            return
        for row, piece in pieces:
            ticket = lane.tickets[row]
            ticket.tokens, ticket.reused = len(row.transcript.tokens), row.reused
            finish = row.transcript.finish
            if finish is not None:
                del lane.tickets[row]
                spent = (time.monotonic() - started) * max(ticket.tokens, 1)
                self._usual_s = 0.8 * self._usual_s + 0.2 * spent
            if piece or finish is not None:
                ticket.heard(piece, finish)

    def _failed(self, lane: Lane, error: Exception) -> None:
        self._noticed(type(error).__name__)
        self._cache.clear()
        ended, lane.tickets = list(lane.tickets.values()), {}
        if lane.batch is not None:
            lane.batch.drop(list(lane.batch.rows))
        for ticket in ended:
            ticket.heard("", "failed")

    def _write(self, lane: Lane, tickets: Sequence[Ticket]) -> None:
        """Write a batch from its beginning to its end."""

        def heard(number: int, piece: str) -> None:
            tickets[number].heard(piece, None)

        try:
            for number, done in lane.generator.each(
                [t.prompt for t in tickets], [t.writing for t in tickets], heard, self._rows
            ):
                tickets[number].tokens = len(done.tokens)
                tickets[number].heard("", done.finish)
        except Exception as error:
            self._noticed(type(error).__name__)
            for ticket in tickets:
                ticket.heard("", "failed")
