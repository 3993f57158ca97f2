"""Who writes for many at once: what waits, what is written next, and when it is too much."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from fedllm.models.prompt_cache import PromptCache
from fedllm.models.rows import Row, row_of
from fedllm.serving.lane import Ending, Lane, Ticket
from fedllm.serving.share import Share
from fedllm.serving.whole_batch import write_whole


class Busy(Exception):
    """Too many wait already; ``retry_after_s`` is when to come again."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(retry_after_s)
        self.retry_after_s = retry_after_s


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
    shared : bool
        Whether several tenants ask: one may then have as many texts here as there is room left,
        so that there is room for another.
    """

    def __init__(
        self,
        rows: int,
        waiting: int,
        noticed: Callable[[str], None] = lambda kind: None,
        cache: PromptCache | None = None,
        shared: bool = False,
    ) -> None:
        self._cache = PromptCache(0) if cache is None else cache
        self._rows = rows
        self._places = rows + waiting
        self._share = Share(self._places, shared)
        self._noticed = noticed
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        # Taken from those that wait, and in no lane yet.
        self._arriving: list[Ticket] = []
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
            for ticket in self._under_way():
                ticket.gone = True
            self._thread.join(grace_s)

    @property
    def is_alive(self) -> bool:
        """Whether there is still a thread that writes."""
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """How many texts are written, and how many wait."""
        return len(self._under_way()), len(self._waiting)

    @property
    def most_texts(self) -> int:
        """Texts that one request can ever have."""
        return self._share.most

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Take texts of one tenant to write, all or none.

        Raises
        ------
        Busy
            If more would wait than may.
        """
        with self._changed:
            here = [*self._under_way(), *self._waiting]
            mine = sum(ticket.tenant == tickets[0].tenant for ticket in here)
            if self._stopping or not self._share.allows(mine, len(here), len(tickets)):
                turns = math.ceil((len(self._waiting) + 1) / self._rows)
                raise Busy(max(1, math.ceil(turns * self._usual_s)))
            self._waiting.extend(tickets)
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            ending: Ending = "stopping"
        except Exception as error:
            # What no lane could end by itself: nobody is left waiting for a thread that is over.
            self._noticed(type(error).__name__)
            ending = "failed"
        with self._changed:
            self._stopping = True
            left, self._waiting = [*self._under_way(), *self._waiting], deque()
        self._cache.clear()
        for ticket in left:
            self._tell(ticket, "", ending)

    def _turn(self) -> bool:
        """Take what is new, and write a token of each text; False when all is done."""
        with self._changed:
            while True:
                left_s = self._cache.expire()
                self._arriving = new = self._admitted()
                ended = self._stopping and not self._under_way()
                if new or ended or any(lane.tickets for lane in self._lanes):
                    break
                self._changed.wait(left_s)
            if ended:
                return False
        self._add(new)
        self._arriving = []
        for lane in self._lanes:
            self._step(lane)
        return True

    def _under_way(self) -> list[Ticket]:
        found = [ticket for lane in self._lanes for ticket in lane.under_way]
        # One that arrives may stand in its lane already.
        return list(dict.fromkeys([*found, *self._arriving]))

    def _admitted(self) -> list[Ticket]:
        """Take from those that wait as many as there is room for.

        The earliest of the tenant for whom the fewest are written is the next.
        """
        if self._stopping:
            return []
        self._waiting = deque(ticket for ticket in self._waiting if not ticket.gone)
        under_way = self._under_way()
        held = Counter(ticket.tenant for ticket in under_way)
        able = [ticket for ticket in self._waiting if not ticket.lane.together]
        found: list[Ticket] = []
        while able and len(under_way) + len(found) < self._rows:
            ticket = min(able, key=lambda one: held[one.tenant])
            held[ticket.tenant] += 1
            able.remove(ticket)
            self._waiting.remove(ticket)
            found.append(ticket)
        return found

    def _add(self, tickets: Sequence[Ticket]) -> None:
        now = time.monotonic()
        late = [ticket for ticket in tickets if ticket.deadline <= now]
        for ticket in late:
            self._tell(ticket, "", "timeout")
        for lane in dict.fromkeys(ticket.lane for ticket in tickets):
            if lane not in self._lanes:
                self._lanes.append(lane)
            mine = [t for t in tickets if t.lane is lane and t not in late]
            begun = [ticket for ticket in mine if self._begun(ticket)]
            if begun and lane.batch is None:
                self._write(lane, begun)
            elif begun and lane.batch is not None:
                rows = [ticket.row for ticket in begun if ticket.row]
                self._pass(lane, partial(lane.batch.add, rows))

    def _begun(self, ticket: Ticket) -> bool:
        """Make ready what a text needs; one that cannot be written ends alone."""
        lane = ticket.lane
        try:
            if lane.batch is None:
                lane.generator.room(ticket.prompt)
                return True
            kept = self._cache.of(lane, ticket.tenant)
            ticket.row = row_of(lane.generator, ticket.prompt, ticket.writing, kept)
        except Exception as error:
            self._noticed(type(error).__name__)
            self._tell(ticket, "", "failed")
            return False
        lane.tickets[ticket.row] = ticket
        return True

    def _step(self, lane: Lane) -> None:
        batch = lane.batch
        if batch is None or not lane.tickets:
            return
        now = time.monotonic()
        gone = {r: t for r, t in lane.tickets.items() if t.gone or t.deadline <= now}
        for row, ticket in gone.items():
            del lane.tickets[row]
            self._tell(ticket, "", "timeout")

        def step() -> list[tuple[Row, str]]:
            batch.drop(list(gone))
            return batch.step()

        self._pass(lane, step)

    def _pass(self, lane: Lane, work: Callable[[], Sequence[tuple[Row, str]]]) -> None:
        """Let a batch write a token of each text; those that broke end, and the others go on."""
        started = time.monotonic()
        try:
            pieces = work()
        except Exception as error:
            self._failed(lane, error)
            return
        for row, piece in pieces:
            ticket = lane.tickets[row]
            ticket.tokens, ticket.reused = len(row.transcript.tokens), row.reused
            finish: Ending | None = row.transcript.finish
            if row.error is not None:
                finish = "failed"
                self._note(row.error)
            elif finish is not None:
                spent = (time.monotonic() - started) * max(ticket.tokens, 1)
                self._usual_s = 0.8 * self._usual_s + 0.2 * spent
            if finish is not None:
                del lane.tickets[row]
            if piece or finish is not None:
                self._tell(ticket, piece, finish)

    def _tell(self, ticket: Ticket, piece: str, ending: Ending | None) -> None:
        """Tell who waits for a text; where that breaks, nobody waits any more."""
        try:
            ticket.heard(piece, ending)
        except Exception as error:
            self._noticed(type(error).__name__)
            ticket.gone = True

    def _note(self, error: Exception) -> None:
        """Count an error, and forget what was kept: it may be what broke, or take the memory."""
        self._noticed(type(error).__name__)
        self._cache.clear()

    def _failed(self, lane: Lane, error: Exception) -> None:
        """End a lane's texts: its batch cannot be trusted any more."""
        self._note(error)
        ended, lane.tickets = list(lane.tickets.values()), {}
        if lane.batch is not None:
            lane.batch.drop(list(lane.batch.rows))
        for ticket in ended:
            self._tell(ticket, "", "failed")

    def _write(self, lane: Lane, tickets: list[Ticket]) -> None:
        """Write a batch from its beginning to its end, beside everything else."""
        lane.together = tickets

        def tell(ticket: Ticket, piece: str) -> None:
            self._tell(ticket, piece, None)

        def work() -> None:
            try:
                endings = write_whole(lane, tickets, self._rows, tell, self._noticed)
            finally:
                with self._changed:
                    lane.together = []
                    self._changed.notify_all()
            for ticket, ending in endings.items():
                self._tell(ticket, "", ending)

        threading.Thread(target=work, name="batch", daemon=True).start()
