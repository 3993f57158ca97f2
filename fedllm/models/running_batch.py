"""A batch of sequences that grows and shrinks while it is written: continuous batching.

Prompts that arrive are read together, in one pass, and their keys and values are put beside those
of the sequences that are under way; then all take one step at a time. A sequence that has ended
leaves at once (Yu et al. 2022, "Orca", iteration-level scheduling). transformers' own continuous
batching has one seed for all and its own kinds of attention, which not every decoder knows.

A long prompt is read in pieces, one at each step, so that nobody waits until all of it is read
(Agrawal et al. 2023, "SARATHI", chunked prefill); several long prompts take turns.

A row may bring what is kept of earlier ones (`fedllm.models.prompt_cache`): then only what follows
the common beginning is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from fedllm.memory import lacks_memory
from fedllm.models.batch_cache import (
    choose,
    filled,
    is_table,
    merge,
    one_row,
    padded,
    take_back,
    wider,
)
from fedllm.models.generation import Generator
from fedllm.models.prompt_cache import Layers
from fedllm.models.reading import Reading, piece_on
from fedllm.models.rows import Begun, Row, broken_off, grouped, left_of


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
        self._piece = piece_on(network.device.type)
        self.rows: list[Row] = []
        # Long prompts; the first reads on next.
        self._reading: deque[Reading] = deque()
        self._last: list[int] = []
        self._cache: DynamicCache | None = None
        # Which of the kept keys are of tokens, (B, T), int64.
        self._mask = torch.zeros(0, 0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.rows) + len(self._reading)

    @torch.no_grad()
    def add(self, rows: Sequence[Row]) -> list[tuple[Row, str]]:
        """Read prompts, and write the first token of each; see `step`.

        Of a long prompt nothing is read before the next step.
        """
        short: list[Begun] = []
        for row in rows:
            # One token at least is read, for what follows it.
            begun = (row, row.kept.find(row.prompt[:-1]) if row.kept else [])
            if left_of(begun) <= self._piece:
                short.append(begun)
            else:
                self._reading.append(Reading(begun))
        return [piece for group in grouped(short) for piece in self._begun(group)]

    @torch.no_grad()
    def step(self) -> list[tuple[Row, str]]:
        """Write one token of each sequence; return the pieces of text that came of it.

        And read a piece of a long prompt, if there is one: its first token comes with its last
        piece.

        Rows that ended are among them, and have left the batch: also those that broke, which have
        their ``error``. Where the pass of all breaks, those leave that break by themselves; where
        none does, or memory is short, the newest; and the others go on.

        Raises
        ------
        Exception
            Of the pass, where what it did to the others cannot be taken back. Drop all rows then.
        """
        written = self._stepped()
        return written + self._read_on()

    def _stepped(self) -> list[tuple[Row, str]]:
        left: list[tuple[Row, str]] = []
        while self._cache is not None and self.rows:
            try:
                logits = self._next(self._last, self._mask, self._cache)
            except Exception as found:
                # Without its frames, which hold what the pass had computed.
                broken = found.with_traceback(None)
            else:
                self._mask = _one_more(self._mask)
                return left + self._written(logits, 0)
            self._take_back(broken, at_the_end=True)
            gone = self._breaking(broken, self._cache)
            self.drop(gone)
            left += [broken_off(row, broken) for row in gone]
        return left

    def drop(self, gone: Sequence[Row]) -> None:
        """Let rows leave, whatever they have written."""
        self._reading = deque(reading for reading in self._reading if reading.row not in gone)
        self._keep([place for place, row in enumerate(self.rows) if row not in gone])

    def _next(self, last: Sequence[int], mask: Tensor, cache: DynamicCache) -> Tensor:
        """Return what follows the last tokens of rows (B,), of which a cache has those before."""
        ids = torch.tensor(last, device=self._network.device)[:, None]
        return self._logits(ids, _one_more(mask), cache)

    def _take_back(self, broken: Exception, *, at_the_end: bool) -> None:
        """Let the cache hold what it held, or raise."""
        rows, width = self._mask.shape
        if self._cache is None or take_back(self._cache, rows, width, at_the_end=at_the_end):
            return
        raise broken

    def _breaking(self, broken: Exception, cache: DynamicCache) -> list[Row]:
        """Return who is to leave so that others can go on."""
        newest = self.rows[-1:]
        if len(self.rows) == 1 or lacks_memory(broken):
            return newest
        return [row for place, row in enumerate(self.rows) if self._breaks(place, cache)] or newest

    def _breaks(self, place: int, cache: DynamicCache) -> bool:
        """Tell whether a row cannot be written on by itself."""
        part = slice(place, place + 1)
        try:
            self._next(self._last[part], self._mask[part], one_row(cache, place))
        except Exception:
            return True
        return False

    def _read_on(self) -> list[tuple[Row, str]]:
        """Read a piece of the long prompt whose turn it is; what breaks there ends it alone."""
        if not self._reading:
            return []
        reading = self._reading.popleft()
        try:
            tokens, cache = reading.next(self._piece)
            ids = torch.tensor([tokens], device=self._network.device)
            mask = ids.new_ones(1, reading.done)
            logits = self._logits(ids, mask, cache)
        except Exception as error:
            return [broken_off(reading.row, error)]
        if reading.ended:
            return self._begun([reading.begun], (logits, cache, mask))
        self._reading.append(reading)
        return []

    def _begun(
        self, group: Sequence[Begun], read: tuple[Tensor, DynamicCache, Tensor] | None = None
    ) -> list[tuple[Row, str]]:
        """Read what is left of prompts and write a token of each; what breaks so is read alone.

        Parameters
        ----------
        read : tuple, optional
            As `_read` returns it, where all is read already.
        """
        merging = False
        try:
            logits, cache, mask = read or self._read(group)
            merging = True
            self._merge(cache, mask)
        except Exception as found:
            broken = found.with_traceback(None)
        else:
            first = len(self.rows)
            self.rows.extend(row for row, _ in group)
            self._last.extend([self._pad_id] * len(group))
            return self._written(logits, first)
        if merging:
            self._take_back(broken, at_the_end=False)
        if len(group) == 1:
            return [broken_off(group[0][0], broken)]
        return [piece for one in group for piece in self._begun([one])]

    def _read(self, group: Sequence[Begun]) -> tuple[Tensor, DynamicCache, Tensor]:
        """Read what is left of prompts in one pass; returns what follows each, its keys, its mask.

        All rows read as many tokens, also some that are kept, so that none has a gap between what
        is kept and what is read: windows count places.
        """
        rows = [row for row, _ in group]
        width = max(left_of(begun) for begun in group)
        for row in rows:
            row.reused = max(len(row.prompt) - width, 0)
        before = max(row.reused for row in rows)
        ids = [padded(row.prompt[row.reused :], width, self._pad_id) for row in rows]
        mask = [padded([1] * len(row.prompt), before + width, 0) for row in rows]
        device = self._network.device
        held = torch.tensor(mask, device=device)
        taken = [(row.reused, blocks) for row, blocks in group]
        cache = filled(taken, before) if before else DynamicCache()
        logits = self._logits(torch.tensor(ids, device=device), held, cache)
        return logits, cache, held

    def _remember(self, place: int) -> None:
        """Keep what a row has read and written, if there is memory for it.

        Nothing is kept where the cache is no table of tokens.
        """
        row, width = self.rows[place], self._mask.shape[1]
        if row.kept is None or self._cache is None or not is_table(self._cache, width):
            return
        layers: Sequence[Any] = self._cache.layers
        held = int(self._mask[place].sum())

        def read(start: int, stop: int) -> Layers:
            part = slice(width - held + start, width - held + stop)
            return tuple(
                (layer.keys[place, :, part].clone(), layer.values[place, :, part].clone())
                for layer in layers
            )

        try:
            row.kept.keep([*row.prompt, *row.transcript.tokens][:held], read)
        except Exception as error:
            if not lacks_memory(error):
                raise

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
        """Hand each row from the ``first`` on what follows it; what breaks there ends it alone."""
        pieces, going = [], list(range(first))
        for place, row in enumerate(self.rows[first:], first):
            try:
                pieces.append((row, self._chosen(place, logits[place - first])))
            except Exception as error:
                pieces.append(broken_off(row, error))
            if row.error is None and row.transcript.finish is None:
                going.append(place)
        self._keep(going)
        return pieces

    def _chosen(self, place: int, logits: Tensor) -> str:
        """Choose a row's next token; returns the piece of text that comes of it."""
        row = self.rows[place]
        if not row.transcript.tokens:
            self._remember(place)
        token = row.drawing.next(logits)
        piece, self._last[place] = row.transcript.push(token), token
        if row.transcript.finish is not None:
            self._remember(place)
        return piece

    def _merge(self, cache: DynamicCache, mask: Tensor) -> None:
        """Put newly read keys and values beside those that are kept."""
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        width = max(self._mask.shape[1], mask.shape[1])
        both = torch.cat([wider(part, width, 1) for part in (self._mask, mask)])
        merge(self._cache, cache, width)
        self._mask = both

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
        if self._cache is not None:
            choose(self._cache, chosen, unused)


def _one_more(mask: Tensor) -> Tensor:
    """Return a mask (B, T + 1) in which each row has another token."""
    return torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
