"""Keys and values of prompts that were read, so that what begins alike is not read again.

Tokens are cut into blocks. A block stands behind the one before it, so that prompts that begin
alike share their first blocks, and the longest common beginning is found by walking from block to
block (Kwon et al. 2023, "PagedAttention", section 4.4). Tokens are compared themselves, not their
digests. Everything is in memory alone.
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

BLOCK = 16
DEFAULT_MIB = 512
# What nobody asked for in so long a time is forgotten.
KEPT_S = 600.0

# Of each layer its keys and values, (H, T, D).
Layers = tuple[tuple[Tensor, Tensor], ...]
# Returns what is held of the tokens from one place up to another; tensors of their own.
Read = Callable[[int, int], Layers]


@dataclass(eq=False)
class _Block:
    key: tuple[Hashable, tuple[int, ...]] = field(repr=False)
    number: int
    layers: Layers = field(repr=False)
    used_s: float

    @property
    def size_bytes(self) -> int:
        return sum(
            tensor.numel() * tensor.element_size() for pair in self.layers for tensor in pair
        )


class PromptCache:
    """Blocks of all models and tenants, within one bound; the longest unused go first.

    For one thread, but for `used_bytes`, which any may read.

    Parameters
    ----------
    most_bytes : int
        Of keys and values; 0 keeps nothing.
    clock : callable
        Seconds that only grow.
    """

    def __init__(
        self,
        most_bytes: int = DEFAULT_MIB << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._numbers = itertools.count()
        # The longest unused first. A block is always used later than those that stand behind it.
        self._blocks: OrderedDict[tuple[Hashable, tuple[int, ...]], _Block] = OrderedDict()
        self.used_bytes = 0

    def of(self, model: Hashable, tenant: str) -> KeptPrompts:
        """Return what one tenant asked of one model, and nobody else finds."""
        return KeptPrompts(self, (model, tenant))

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self.used_bytes = 0

    def expire(self) -> float | None:
        """Forget what was not used for long; return in how many seconds there is more to forget."""
        now = self._clock()
        while self._blocks:
            left = next(iter(self._blocks.values())).used_s + KEPT_S - now
            if left > 0:
                return left
            self._drop_oldest()
        return None

    def find(self, owner: Hashable, tokens: Sequence[int]) -> list[Layers]:
        """Return blocks that these tokens begin with; see `KeptPrompts`."""
        return [block.layers for block in self._path(owner, tokens)]

    def keep(self, owner: Hashable, tokens: Sequence[int], read: Read) -> None:
        """Keep the tokens' whole blocks that are not yet there; see `KeptPrompts`."""
        path = self._path(owner, tokens)
        size = sum(block.size_bytes for block in path)
        for start in range(len(path) * BLOCK, len(tokens) - BLOCK + 1, BLOCK):
            parent = path[-1].number if path else owner
            key = (parent, tuple(tokens[start : start + BLOCK]))
            layers = read(start, start + BLOCK)
            block = _Block(key, next(self._numbers), layers, 0.0)
            size += block.size_bytes
            if size > self._most_bytes:
                break
            # Others than this path's are older, and are enough.
            while self.used_bytes + block.size_bytes > self._most_bytes:
                self._drop_oldest()
            self._blocks[key] = block
            self.used_bytes += block.size_bytes
            path.append(block)
        self._touch(path)

    def _path(self, owner: Hashable, tokens: Sequence[int]) -> list[_Block]:
        found: list[_Block] = []
        for part in _cut(tokens):
            block = self._blocks.get((found[-1].number if found else owner, part))
            if block is None:
                break
            found.append(block)
        self._touch(found)
        return found

    def _touch(self, path: Sequence[_Block]) -> None:
        """Note that blocks were used; the last first, so that none is forgotten before its next."""
        now = self._clock()
        for block in reversed(path):
            block.used_s = now
            self._blocks.move_to_end(block.key)

    def _drop_oldest(self) -> None:
        _, block = self._blocks.popitem(last=False)
        self.used_bytes -= block.size_bytes


@dataclass(frozen=True)
class KeptPrompts:
    """What is kept for one owner.

    Attributes
    ----------
    cache : PromptCache
        Of all owners.
    owner : hashable
        Whose tokens these are; others' are not found, however alike.
    """

    cache: PromptCache = field(repr=False)
    owner: Hashable = field(repr=False)

    def find(self, tokens: Sequence[int]) -> list[Layers]:
        """Return blocks that these tokens begin with, `BLOCK` tokens each."""
        return self.cache.find(self.owner, tokens)

    def keep(self, tokens: Sequence[int], read: Read) -> None:
        """Keep whole blocks of tokens that a model has read.

        Parameters
        ----------
        read : callable
            Asked for those that are not there yet.
        """
        self.cache.keep(self.owner, tokens, read)


def _cut(tokens: Sequence[int]) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        yield tuple(tokens[start : start + BLOCK])
