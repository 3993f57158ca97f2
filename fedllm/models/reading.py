"""A long prompt that is read in pieces, between which others are written for."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import DynamicCache

from fedllm.models.batch_cache import filled
from fedllm.models.prompt_cache import BLOCK
from fedllm.models.rows import Begun, Row

# Tokens that a processor reads at once, in a second or so with a model of some hundred million
# parameters; and a GPU.
_PIECE, _PIECE_OF_A_GPU = 256, 2048


def piece_on(device: str) -> int:
    """Return how many tokens are read at once on a kind of device."""
    return _PIECE if device == "cpu" else _PIECE_OF_A_GPU


@dataclass(eq=False)
class Reading:
    """How far a prompt is read.

    Attributes
    ----------
    begun : tuple
        The row, and the blocks that are kept of its beginning.
    cache : DynamicCache, optional
        Keys and values of what was read; None before the first piece.
    done : int
        Tokens of the prompt in it.
    """

    begun: Begun
    cache: DynamicCache | None = field(default=None, repr=False)
    done: int = 0

    @property
    def row(self) -> Row:
        """Whose prompt it is."""
        return self.begun[0]

    @property
    def ended(self) -> bool:
        """Whether all of it is read."""
        return self.done == len(self.row.prompt)

    def next(self, most: int) -> tuple[tuple[int, ...], DynamicCache]:
        """Return the tokens that are read next, and the cache that they are put into."""
        if self.cache is None:
            blocks = self.begun[1]
            self.row.reused = self.done = BLOCK * len(blocks)
            self.cache = filled([(self.done, blocks)], self.done) if blocks else DynamicCache()
            self.begun = (self.row, [])
        tokens = self.row.prompt[self.done : self.done + most]
        self.done += len(tokens)
        return tokens, self.cache
