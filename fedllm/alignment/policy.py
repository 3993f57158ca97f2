"""The model that is aligned: its adapter, the adapter that it began with, and a value head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from fedllm.alignment.rollouts import Answer, batch_of
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch


@dataclass(frozen=True, eq=False)
class Piece:
    """Some answers as a batch, with what the frozen layers give of them.

    Attributes
    ----------
    batch : Batch
        On the model's device.
    lengths : tuple of int
        Tokens of each answer that count.
    """

    batch: Batch
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """That count, of all its answers."""
        return sum(self.lengths)


@dataclass(frozen=True, eq=False)
class Read:
    """What the model says of a piece's tokens.

    Attributes
    ----------
    log_probs : Tensor
        (N,), float32: of each token that was drawn, by the whole distribution, in nats.
    states : Tensor
        (N, H): what the model held before it.
    """

    log_probs: Tensor
    states: Tensor


class ValueHead(nn.Module):
    """How much reward is still to come, from the state before a token.

    It learns on the states as they are: no gradient of it reaches the adapter, so that a head
    which has learned nothing yet does not spoil what the model can do.

    Parameters
    ----------
    width : int
        Of a state.
    device : torch.device, optional
        The model's.
    """

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1, device=device)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """Return values (N,), float32, of states (N, H)."""
        known = layer_norm(states.detach().float(), states.shape[-1:])
        return cast(Tensor, self.linear(known))[:, 0]


class Policy:
    """A released model that writes, trained from the adapter that it holds now.

    Parameters
    ----------
    model : SharedModel
        As it was released. That adapter is the reference.
    """

    def __init__(self, model: SharedModel) -> None:
        self.model = model
        # Chance in layers would make a token's probability another one at each look.
        model.module.eval()
        self._module: Any = model.module
        self._start = model.adapter()

    @property
    def trained(self) -> list[nn.Parameter]:
        """The adapter's tensors."""
        return self.model.trained

    @property
    def adapter(self) -> NDArray[np.float32]:
        """A copy of the adapter's values (P,), float32."""
        return self.model.adapter()

    @property
    def start(self) -> NDArray[np.float32]:
        """The values (P,), float32, that the model began with."""
        return self._start.copy()

    @property
    def width(self) -> int:
        """Of a state."""
        return int(self._module.stack.width)

    @contextmanager
    def holding(self, adapter: NDArray[np.float32]) -> Iterator[None]:
        """Hold another adapter (P,) as long as the block runs."""
        now = self.model.adapter()
        self.model.set_adapter(adapter)
        try:
            yield
        finally:
            self.model.set_adapter(now)

    def pieces(self, answers: Sequence[Answer], rows: int) -> list[Piece]:
        """Return answers as batches of at most ``rows``, frozen layers run once for all uses."""
        found = []
        pad = self.model.tokenizer.pad_token_id or 0
        for start in range(0, len(answers), rows):
            part = answers[start : start + rows]
            batch = self.model.moved(batch_of(part, int(pad)))
            if self._module.stack.has_frozen_part:
                with torch.no_grad():
                    batch = {**batch, "states": self._module.prefix(batch)}
            found.append(Piece(batch, tuple(len(one.tokens) for one in part)))
        return found

    def read(self, piece: Piece) -> Read:
        """Return what the model says of a piece's tokens, with its gradient."""
        states, targets, _ = self._module.counted(piece.batch)
        return Read(-self._module.readout.losses(states, targets), states)

    @torch.no_grad()
    def log_probs(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Return the log-probabilities of each piece's tokens, (N,) each, float32."""
        return [self.read(piece).log_probs for piece in pieces]

    def reference(self, pieces: Sequence[Piece]) -> list[Tensor]:
        """Return the same under the model that training began with, its adapter in place."""
        with self.holding(self._start):
            return self.log_probs(pieces)


def by_answer(pieces: Sequence[Piece], tokens: Sequence[Tensor]) -> list[Tensor]:
    """Take what stands for each piece's tokens apart into answers."""
    return [
        part
        for piece, own in zip(pieces, tokens, strict=True)
        for part in own.split(list(piece.lengths))
    ]


def by_piece(pieces: Sequence[Piece], answers: Sequence[Tensor]) -> list[Tensor]:
    """Put what stands for each answer's tokens together, one tensor a piece."""
    found, first = [], 0
    for piece in pieces:
        last = first + len(piece.lengths)
        found.append(torch.cat(list(answers[first:last])))
        first = last
    return found
