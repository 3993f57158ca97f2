"""Sequences that are written, each as it was asked for; and which are begun together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedllm.models.drawing import Drawing
from fedllm.models.generation import Generator, Writing
from fedllm.models.prompt_cache import BLOCK, KeptPrompts, Layers
from fedllm.models.transcript import Transcript


@dataclass(eq=False)
class Row:
    """One sequence that is written.

    Attributes
    ----------
    prompt : tuple of int
        Its tokens; at least one.
    drawing : Drawing
        Chooses its tokens.
    transcript : Transcript
        What it wrote; it has ended when ``transcript.finish`` is set.
    kept : KeptPrompts, optional
        Where a common beginning is looked for, and what was read and written is kept.
    reused : int
        Tokens of the prompt that were not read again.
    error : Exception, optional
        What ended it before its end.
    """

    prompt: tuple[int, ...]
    drawing: Drawing
    transcript: Transcript
    kept: KeptPrompts | None = None
    reused: int = 0
    error: Exception | None = field(default=None, repr=False)


def row_of(
    generator: Generator, prompt: tuple[int, ...], writing: Writing, kept: KeptPrompts | None
) -> Row:
    """Return a sequence that goes on from a prompt.

    Raises
    ------
    ConfigError
        If the prompt is empty, or leaves no room.
    """
    room = generator.room(prompt)
    most = writing.new_tokens if room is None else min(writing.new_tokens, room)
    transcript = Transcript(generator.tokenizer, generator.ends_of(writing), writing.stops, most)
    return Row(prompt, writing.sampling.drawing(prompt), transcript, kept)


# A row, and the blocks that are kept of its beginning.
Begun = tuple[Row, list[Layers]]


def left_of(begun: Begun) -> int:
    """Return how many tokens of a prompt are to be read."""
    row, blocks = begun
    return len(row.prompt) - BLOCK * len(blocks)


def grouped(found: Sequence[Begun]) -> list[list[Begun]]:
    """Put together what is read in one pass: all that is new; and else what is of similar length.

    Within a group no row reads twice as much as it must.
    """
    groups: list[list[Begun]] = [[]]
    for begun in sorted((b for b in found if b[1]), key=left_of):
        if not groups[-1] or left_of(begun) > 2 * left_of(groups[-1][0]):
            groups.append([])
        groups[-1].append(begun)
    groups.append([begun for begun in found if not begun[1]])
    return [group for group in groups if group]


def broken_off(row: Row, error: Exception) -> tuple[Row, str]:
    """Note what ended a row, without the frames in which it was raised: they hold tensors."""
    row.error = error.with_traceback(None)
    return row, ""
