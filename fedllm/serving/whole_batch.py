"""A batch of texts that is written from its beginning to its end.

For encoder-decoders, and decoders in which padding counts: nobody can come or leave in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from fedllm.serving.lane import Ending, Lane, Ticket

# Tells who waits for a text its next piece.
Tell = Callable[[Ticket, str], None]
# Told the kind of an error.
Noticed = Callable[[str], None]


def write_whole(
    lane: Lane, tickets: Sequence[Ticket], rows: int, tell: Tell, noticed: Noticed
) -> dict[Ticket, Ending]:
    """Write texts; return how each ended. What nobody waits for is not written on.

    Where it breaks, each of which nothing was heard is written by itself.

    Parameters
    ----------
    rows : int
        Texts written at once.
    """
    heard: set[Ticket] = set()

    def hear(ticket: Ticket, piece: str) -> None:
        heard.add(ticket)
        tell(ticket, piece)

    endings = _tried(lane, tickets, rows, hear, noticed)
    for ticket in tickets if len(tickets) > 1 else ():
        if ticket not in endings and ticket not in heard:
            endings |= _tried(lane, [ticket], rows, hear, noticed)
    return {ticket: endings.get(ticket, "failed") for ticket in tickets}


def _tried(
    lane: Lane, tickets: Sequence[Ticket], rows: int, hear: Tell, noticed: Noticed
) -> dict[Ticket, Ending]:
    """Return how those ended that were written."""
    endings: dict[Ticket, Ending] = {}

    def given_up(number: int) -> bool:
        ticket = tickets[number]
        return ticket.gone or ticket.deadline <= time.monotonic()

    try:
        for number, done in lane.generator.each(
            [ticket.prompt for ticket in tickets],
            [ticket.writing for ticket in tickets],
            lambda number, piece: hear(tickets[number], piece),
            rows,
            given_up,
        ):
            tickets[number].tokens = len(done.tokens)
            endings[tickets[number]] = "timeout" if done.finish is None else done.finish
    except Exception as error:
        noticed(type(error).__name__)
    return endings
