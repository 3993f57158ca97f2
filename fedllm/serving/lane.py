"""One text that somebody waits for, and one model's texts under way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from fedllm.models.generation import Generator, Writing
from fedllm.models.rows import Row
from fedllm.models.running_batch import running_batch_of

Ending = Literal["stop", "length", "timeout", "failed", "stopping"]


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
    counts, writes batches of what waits, in a thread of their own: nobody else waits for it.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.batch = running_batch_of(generator)
        self.tickets: dict[Row, Ticket] = {}
        # Those of a batch that is written from its beginning to its end.
        self.together: list[Ticket] = []

    @property
    def under_way(self) -> list[Ticket]:
        """What is written."""
        return [*self.tickets.values(), *self.together]
