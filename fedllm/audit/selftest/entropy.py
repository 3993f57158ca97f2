"""What the operating system gave, and which streams of random numbers it was used for.

Nobody can tell by looking at numbers whether a key of 64 bits or a public value is behind them.
So the self-test stands between the program and the operating system: it notes every answer, may
give answers of its own, and notes with which key each stream is begun and what it gave.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm import clock
from fedllm.randomness import RandomStream

# A ledger's first entry names the time, and masks have keys that follow from its hash.
_MINUTE = "2000-01-01T00:00+00:00"
# The smallest key that nobody can try out.
SMALLEST_KEY_BYTES = 16


@dataclass
class Stream:
    """A stream of random numbers that was begun, and what was drawn from it.

    Attributes
    ----------
    key : bytes
        As it was given.
    bytes : int
        How many were taken.
    sampled : list of (int, float)
        Population and rate of each Poisson sample.
    """

    key: bytes
    bytes: int = 0
    sampled: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Seen:
    """What happened while the self-test looked.

    Attributes
    ----------
    answers : list of bytes
        Of the operating system's entropy source, in order.
    streams : list of Stream
        Begun meanwhile, in order.
    """

    answers: list[bytes] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    @property
    def used(self) -> list[Stream]:
        """Streams that something was drawn from."""
        return [stream for stream in self.streams if stream.bytes]

    @property
    def sampled(self) -> list[tuple[int, float]]:
        """Population and rate of each Poisson sample of all streams."""
        return [sample for stream in self.streams for sample in stream.sampled]


Answer = Callable[[int, int], bytes]


def known_answers(world: str) -> Answer:
    """Return an entropy source whose answers are the same for the same ``world``.

    The ``number``-th call for ``size`` bytes gets SHAKE-256 of both.
    """
    return lambda number, size: hashlib.shake_256(f"{world} {number}".encode()).digest(size)


def changed(answer: Answer, call: int, place: int | None = None) -> Answer:
    """Return a source whose answer to one call is another, in one byte or in all of them."""

    def other(number: int, size: int) -> bytes:
        given = answer(number, size)
        if number != call:
            return given
        if place is None:
            return bytes(byte ^ 0xFF for byte in given)
        at = place % max(1, size)
        return given[:at] + bytes([given[at] ^ 0xFF]) + given[at + 1 :]

    return other


@contextmanager
def watched(answer: Answer | None = None) -> Iterator[Seen]:
    """Note all entropy and all streams inside the block.

    Parameters
    ----------
    answer : callable
        Answers in place of the operating system, which is asked when left out. With it the clock
        of the ledgers stands, so that the same entropy gives the same bytes in any minute.
    """
    seen = Seen()
    system = os.urandom

    def urandom(size: int) -> bytes:
        given = system(size) if answer is None else answer(len(seen.answers), size)
        seen.answers.append(given)
        return given

    with (
        replaced(os, "urandom", urandom),
        replaced(os, "getrandom", lambda size, flags=0: urandom(size)),
        # Where `random.SystemRandom` and `secrets`, and so numpy, take it from.
        replaced(random, "_urandom", urandom),
        _noted_streams(seen),
        nullcontext() if answer is None else replaced(clock, "utc_minute", lambda: _MINUTE),
    ):
        yield seen


@contextmanager
def _noted_streams(seen: Seen) -> Iterator[None]:
    begin, take, choose = RandomStream.__init__, RandomStream.bytes, RandomStream.poisson_sample
    known: dict[int, tuple[RandomStream, Stream]] = {}

    def begun(self: RandomStream, key: bytes) -> None:
        begin(self, key)
        seen.streams.append(Stream(bytes(key)))
        # The stream is kept, so that no later one gets its place in memory.
        known[id(self)] = (self, seen.streams[-1])

    def taken(self: RandomStream, count: int) -> bytes:
        if id(self) in known:
            known[id(self)][1].bytes += count
        return take(self, count)

    def chosen(self: RandomStream, population: int, rate: float) -> NDArray[np.int64]:
        if id(self) in known:
            known[id(self)][1].sampled.append((population, rate))
        return choose(self, population, rate)

    with (
        replaced(RandomStream, "__init__", begun),
        replaced(RandomStream, "bytes", taken),
        replaced(RandomStream, "poisson_sample", chosen),
    ):
        yield


@contextmanager
def scripted_normals(numbers: NDArray[np.float64]) -> Iterator[None]:
    """Let every stream draw standard normal numbers from the start of ``numbers``."""

    def normal(self: RandomStream, count: int, parts: int = 4) -> NDArray[np.float64]:
        return numbers[:count].copy()

    with replaced(RandomStream, "normal", normal):
        yield


@contextmanager
def even_uniforms() -> Iterator[None]:
    """Let every stream draw uniform numbers that are evenly spread over [0, 1), in order."""

    def uniform(self: RandomStream, count: int) -> NDArray[np.float64]:
        return (np.arange(count) + 0.5) / count

    with replaced(RandomStream, "uniform", uniform):
        yield


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put another value in place of an attribute inside the block."""
    missing = object()
    before = vars(owner).get(name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def weak_key(seen: Seen) -> str | None:
    """Tell what is wrong with the keys of the streams that were used; none if nothing is.

    Each must be one whole answer of the operating system, of at least 128 bits, and serve one
    stream alone.
    """
    answers = {answer for answer in seen.answers if len(answer) >= SMALLEST_KEY_BYTES}
    keys = [stream.key for stream in seen.used]
    if not keys:
        return "no stream of random numbers was used"
    if any(key not in answers for key in keys):
        return "a stream's key is not what the operating system gave, or shorter than 128 bits"
    if len(set(keys)) < len(keys):
        return "two streams have the same key"
    return None
