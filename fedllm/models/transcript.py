"""From tokens to text as they come: whole characters, up to a token or a text that ends it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from transformers import PreTrainedTokenizerBase

# Stands for bytes that are no character, or not yet one.
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"

Finish = Literal["stop", "length"]


class Transcript:
    """What one sequence writes.

    The text is that of its own tokens, without special ones. A piece is handed on when nothing
    that comes can change it: bytes of a character wait for the rest of it, and what a stop text
    begins with waits until it is another text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Of the model.
    ends : collection of int
        Tokens that end the sequence; they are no part of it.
    stops : sequence of str
        Texts that end it; neither are they.
    most : int
        Tokens after which it ends in any case.

    Attributes
    ----------
    tokens : list of int
        Written so far, without one that ended it.
    text : str
        Handed on so far.
    finish : {"stop", "length"} or None
        Why it ended; None while it goes on.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        stops: Sequence[str],
        most: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._ends = ends
        self._stops = stops
        self._most = most
        # Tokens from the first on whose text may still change, and how many before them.
        self._window, self._read = 0, 0
        self._held = ""
        self.tokens: list[int] = []
        self.text = ""
        self.finish: Finish | None = None

    def push(self, token: int) -> str:
        """Take the next token; return the piece of text that can be handed on, perhaps empty."""
        if self.finish is not None:
            return ""
        if token in self._ends:
            return self._ended("stop")
        self.tokens.append(token)
        piece = self._held_back(self._characters())
        if self.finish is None and len(self.tokens) >= self._most:
            return piece + self._ended("length")
        return piece

    def _characters(self) -> str:
        """Return the new whole characters.

        What a token adds is seen beside the token before it, for many tokenizers write a space
        between two tokens and none before the first. (`tokenizers` has a stream that does the
        same, and raises where a later token changes what stood before it.)
        """
        before = self._decoded(self.tokens[self._window : self._read])
        whole = self._decoded(self.tokens[self._window :])
        if whole.endswith(_INCOMPLETE) or len(whole) <= len(before):
            return ""
        self._window, self._read = self._read, len(self.tokens)
        return whole[len(before) :]

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _held_back(self, new: str) -> str:
        """Return what of the text so far no stop text can begin with; end it at one."""
        text = self._held + new
        found = min((place for s in self._stops if (place := text.find(s)) >= 0), default=-1)
        if found >= 0:
            self._held, self.finish = "", "stop"
            return self._handed_on(text[:found])
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return self._handed_on(text[: len(text) - kept])

    def _ended(self, finish: Finish) -> str:
        before = self._decoded(self.tokens[self._window : self._read])
        rest = self._decoded(self.tokens[self._window :])[len(before) :]
        piece = self._held_back(rest.rstrip(_INCOMPLETE))
        if self.finish is None:
            self.finish, held, self._held = finish, self._held, ""
            return piece + self._handed_on(held)
        return piece

    def _handed_on(self, piece: str) -> str:
        self.text += piece
        return piece


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text ``stop`` begins with, but for all of it."""
    longest = min(len(stop) - 1, len(text))
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
