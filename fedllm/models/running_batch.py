"""A batch of sequences that grows and shrinks while it is written: continuous batching.

Prompts that arrive are read together, in one pass, and their keys and values are put beside those
of the sequences that are under way; then all take one step at a time. A sequence that has ended
leaves at once (Yu et al. 2022, "Orca", iteration-level scheduling). transformers' own continuous
batching has one seed for all and its own kinds of attention, which not every decoder knows.

A row may bring what is kept of earlier ones (`fedllm.models.prompt_cache`): then only what follows
the common beginning is read.
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
from transformers.cache_utils import DynamicLayer

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
    """

    prompt: tuple[int, ...]
    drawing: Drawing
    transcript: Transcript
    kept: KeptPrompts | None = None
    reused: int = 0


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


def running_batch_of(generator: Generator) -> RunningBatch | None:
    """Return a batch for a model that nothing trains; None where it can have none."""
    network = generator.network
    if network.config.is_encoder_decoder or not generator.ignores_padding:
        return None
    network.eval()
    return RunningBatch(network, int(generator.tokenizer.pad_token_id or 0))


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

    @property
    def is_whole(self) -> bool:
        """Whether keys are kept of the rows and of nothing else; not where `add` was broken off."""
        return len(self._mask) == len(self.rows)

    @torch.no_grad()
    def add(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """Read prompts, and write the first token of each; see `step`."""
        # One token at least is read, for what follows it.
        found = [(row, row.kept.find(row.prompt[:-1]) if row.kept else []) for row in rows]
        return [piece for group in _groups(found) for piece in self._read(group)]

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

    def _read(self, group: Sequence[_Begun]) -> list[tuple[Row, str]]:
        """Read what is left of prompts, in one pass.

        All rows read as many tokens, also some that are kept, so that none has a gap between what
        is kept and what is read: windows count places.
        """
        rows = [row for row, _ in group]
        width = max(_left(begun) for begun in group)
        for row in rows:
            row.reused = max(len(row.prompt) - width, 0)
        before = max(row.reused for row in rows)
        ids = [_padded(row.prompt[row.reused :], width, self._pad_id) for row in rows]
        mask = [_padded([1] * len(row.prompt), before + width, 0) for row in rows]
        device = self._network.device
        held = torch.tensor(mask, device=device)
        cache = _filled(group, before) if before else DynamicCache()
        logits = self._logits(torch.tensor(ids, device=device), held, cache)
        self._merge(cache, held)
        self.rows.extend(rows)
        self._last.extend([self._pad_id] * len(rows))
        first = len(self.rows) - len(rows)
        for place in range(first, len(self.rows)):
            self._remember(place)
        return self._written(logits, first)

    def _remember(self, place: int) -> None:
        """Keep what a row has read and written; nothing where the cache is no table of tokens."""
        row, width = self.rows[place], self._mask.shape[1]
        if row.kept is None or self._cache is None or not _is_table(self._cache, width):
            return
        layers: Sequence[Any] = self._cache.layers
        held = int(self._mask[place].sum())

        def read(start: int, stop: int) -> Layers:
            part = slice(width - held + start, width - held + stop)
            return tuple(
                (layer.keys[place, :, part].clone(), layer.values[place, :, part].clone())
                for layer in layers
            )

        row.kept.keep([*row.prompt, *row.transcript.tokens][:held], read)

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
            else:
                self._remember(place)
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


# A row, and the blocks that are kept of its beginning.
_Begun = tuple[Row, list[Layers]]


def _left(begun: _Begun) -> int:
    row, blocks = begun
    return len(row.prompt) - BLOCK * len(blocks)


def _groups(found: Sequence[_Begun]) -> list[list[_Begun]]:
    """Put together what is read in one pass: all that is new; and else what is of similar length.

    Within a group no row reads twice as much as it must.
    """
    groups: list[list[_Begun]] = [[]]
    for begun in sorted((b for b in found if b[1]), key=_left):
        if not groups[-1] or _left(begun) > 2 * _left(groups[-1][0]):
            groups.append([])
        groups[-1].append(begun)
    groups.append([begun for begun in found if not begun[1]])
    return [group for group in groups if group]


def _filled(group: Sequence[_Begun], width: int) -> DynamicCache:
    """Return a cache of what is kept, padded on the left to so many tokens."""
    cache = DynamicCache()
    for layer in range(len(group[0][1][0])):
        pair = [
            torch.stack(
                [
                    _wider(
                        torch.cat([b[layer][which] for b in blocks], 1)[:, : row.reused], width, 1
                    )
                    for row, blocks in group
                ]
            )
            for which in (0, 1)
        ]
        cache.update(pair[0], pair[1], layer)
    return cache


def _is_table(cache: DynamicCache, width: int) -> bool:
    """Tell whether all layers hold keys and values of each token, and nothing else."""
    layers: Sequence[Any] = cache.layers
    return {type(layer) for layer in layers} == {DynamicLayer} and all(
        layer.is_initialized and layer.keys.shape[2] == layer.values.shape[2] == width
        for layer in layers
    )


def _padded(values: Sequence[int], width: int, pad_with: int) -> list[int]:
    return [pad_with] * (width - len(values)) + list(values)


def _wider(values: Tensor, width: int, axis: int) -> Tensor:
    """Put zeros before what there is along an axis."""
    missing = width - values.shape[axis]
    return pad(values, (*[0, 0] * (values.dim() - 1 - axis), missing, 0)) if missing else values
