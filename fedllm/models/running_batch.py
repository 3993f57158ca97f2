"""A batch of sequences that grows and shrinks while it is written: continuous batching.

Prompts that arrive are read together, in one pass, and their keys and values are put beside those
of the sequences that are under way; then all take one step at a time. A sequence that has ended
leaves at once (Yu et al. 2022, "Orca", iteration-level scheduling). transformers' own continuous
batching has one seed for all and its own kinds of attention, which not every decoder knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from fedllm.models.drawing import Drawing
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
    """

    prompt: tuple[int, ...]
    drawing: Drawing
    transcript: Transcript


class RunningBatch:
    """Sequences of one decoder, each at its own place.

    Keys and values lie with padding on the left, so that each row's newest stand at the end. All
    layers keep all of them, also those whose window is shorter: the model's masks leave out what
    a window does.

    Parameters
    ----------
    network : PreTrainedModel
        A decoder in which padding on the left changes nothing (`Generator.ignores_padding`).
    pad_id : int
        Any token.
    """

    def __init__(self, network: PreTrainedModel, pad_id: int) -> None:
        self._network: Any = network
        self._pad_id = pad_id
        self._counts_positions = "position_ids" in signature(type(network).forward).parameters
        self._short = "logits_to_keep" in signature(type(network).forward).parameters
        self.rows: list[Row] = []
        self._last: list[int] = []
        self._cache: DynamicCache | None = None
        # Which of the kept keys are of tokens, (B, T), int64.
        self._mask = torch.zeros(0, 0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @torch.no_grad()
    def add(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """Read prompts, and write the first token of each; see `step`."""
        if not rows:
            return []
        width = max(len(row.prompt) for row in rows)
        ids = [[self._pad_id] * (width - len(row.prompt)) + list(row.prompt) for row in rows]
        mask = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        device = self._network.device
        cache, held = DynamicCache(), torch.tensor(mask, device=device)
        logits = self._logits(torch.tensor(ids, device=device), held, cache)
        self._merge(cache, held)
        self.rows.extend(rows)
        self._last.extend([self._pad_id] * len(rows))
        return self._written(logits, len(self.rows) - len(rows))

    @torch.no_grad()
    def step(self) -> list[tuple[Row, str]]:
        """Write one token of each sequence; return the pieces of text that came of it.

        Rows that ended are among them, and have left the batch.
        """
        if self._cache is None or not self.rows:
            return []
        device = self._network.device
        newest = torch.ones(len(self.rows), 1, dtype=torch.int64, device=device)
        self._mask = torch.cat([self._mask, newest], dim=1)
        ids = torch.tensor(self._last, device=device)[:, None]
        return self._written(self._logits(ids, self._mask, self._cache), 0)

    def drop(self, gone: Sequence[Row]) -> None:
        """Let rows leave, whatever they have written."""
        self._keep([place for place, row in enumerate(self.rows) if row not in gone])

    def _logits(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Run the model; returns what follows each row, (B, V), float32."""
        more: dict[str, Any] = {"logits_to_keep": 1} if self._short else {}
        if self._counts_positions:
            places = (mask.cumsum(1) - 1).clamp(min=0)
            more["position_ids"] = places[:, -ids.shape[1] :]
        output = self._network(
            input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more
        )
        return output.logits[:, -1].float()  # type: ignore[no-any-return]

    def _written(self, logits: Tensor, first: int) -> list[tuple[Row, str]]:
        pieces, going = [], list(range(first))
        for place, row in enumerate(self.rows[first:], first):
            token = row.drawing.next(logits[place - first])
            piece, self._last[place] = row.transcript.push(token), token
            pieces.append((row, piece))
            if row.transcript.finish is None:
                going.append(place)
        self._keep(going)
        return pieces

    def _merge(self, cache: DynamicCache, mask: Tensor) -> None:
        """Put newly read keys and values beside those that are kept."""
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        self._mask = torch.cat([_wider(part, width, 1) for part in (self._mask, mask)])
        for own, new in zip(self._cache.layers, cache.layers, strict=True):
            for name in ("keys", "values"):
                parts = [_wider(getattr(layer, name), width, 2) for layer in (own, new)]
                setattr(own, name, torch.cat(parts))

    def _keep(self, places: list[int]) -> None:
        """Let all other rows leave, and with them what no row needs any more."""
        if len(places) == len(self.rows):
            return
        self.rows = [self.rows[place] for place in places]
        self._last = [self._last[place] for place in places]
        if not places:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        chosen = torch.tensor(places, device=self._mask.device)
        self._mask = self._mask[chosen]
        unused = int(self._mask.any(0).int().argmax())
        self._mask = self._mask[:, unused:]
        for layer in self._cache.layers if self._cache else ():
            for name in ("keys", "values"):
                setattr(layer, name, getattr(layer, name)[chosen, :, unused:].contiguous())


def _wider(values: Tensor, width: int, axis: int) -> Tensor:
    """Put zeros before what there is along an axis."""
    missing = width - values.shape[axis]
    return pad(values, (*[0, 0] * (values.dim() - 1 - axis), missing, 0)) if missing else values
