"""Made-up token sequences on which an export must answer as the run's own model does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedllm.errors import TrainingError
from fedllm.exporting.kinds import TrainedHead, kind_of
from fedllm.exporting.released import Released
from fedllm.models.encoder_decoder import IGNORED, shifted
from fedllm.models.manifest import AdapterManifest
from fedllm.models.transformer import Batch
from fedllm.randomness import RandomStream

REMEDY = "report this: what the run released is as it was"

# Of several lengths, so that padding is tried; long enough for windows of local attention.
_LENGTHS = (3, 8, 21, 40)


@dataclass(frozen=True, eq=False)
class Probe:
    """Token sequences, padded on the right.

    Attributes
    ----------
    ids, mask : Tensor
        (B, T) int64; the mask is 0 where there is padding.
    starts : Tensor
        (B,) int64: where the response of each sequence starts, for models that read a prompt.
    """

    ids: Tensor
    mask: Tensor
    starts: Tensor

    @property
    def batch(self) -> Batch:
        """What a model of fedllm takes."""
        places = torch.arange(self.ids.shape[1])
        counted = (places >= self.starts[:, None]) & self.mask.bool()
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "labels": torch.where(counted, self.ids, IGNORED),
        }

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What a model of transformers takes."""
        return {"input_ids": self.ids, "attention_mask": self.mask}


def make_probe(released: Released, rows: int = len(_LENGTHS), seed: int = 0) -> Probe:
    """Draw ordinary tokens of a model's vocabulary."""
    tokenizer: Any = released.model.tokenizer
    special = set(tokenizer.all_special_ids)
    table: Any = released.model.module.backbone.get_input_embeddings()
    ordinary = np.array(
        [t for t in range(min(len(tokenizer), len(table.weight))) if t not in special]
    )
    most = released.run.config.model.max_length
    lengths = [min(_LENGTHS[row % len(_LENGTHS)], most) for row in range(rows)]
    stream = RandomStream.seeded(seed, "probe")
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    drawn = torch.from_numpy(ordinary[stream.below(len(ordinary), mask.numel()).astype(int)])
    ids = torch.where(mask, drawn.reshape(mask.shape), int(tokenizer.pad_token_id))
    return Probe(ids, mask.long(), torch.tensor(lengths) // 2)


@torch.no_grad()
def answers(released: Released, probe: Probe) -> Tensor:
    """Return the logits (N, C) that the run's own model gives, float32, without padding's."""
    module: Any = released.model.module
    kind = kind_of(released.model)
    if kind.head is not None:
        logits = module(probe.batch)
        return logits[probe.mask.bool()] if kind.head.of_tokens else logits
    if kind.prompted:
        return module.before_loss(probe.batch)[_written(module, probe)].float()
    return module.before_loss(probe.batch)[probe.mask[:, 1:].bool()].float()


@contextmanager
def untrained(released: Released) -> Iterator[None]:
    """Let the run's base be as it was before training, under the head that the run trained."""
    model = released.model
    layers = [s for s in model.tensors.segments if s.group != "head"]
    part = AdapterManifest.of((s.name, s.shape, s.group) for s in layers)
    with model.unchanged():
        model.put(part, model.untrained(part))
        yield


@torch.no_grad()
def language_answers(released: Released, model: Any, probe: Probe) -> Tensor:
    """Return the same of a language model of transformers, in the same order."""
    if not kind_of(released.model).prompted:
        return model(**probe.inputs).logits[:, :-1][probe.mask[:, 1:].bool()].float()
    module: Any = released.model.module
    config, read = module.backbone.config, module.sides(probe.batch)
    logits = model(
        input_ids=read.prompts,
        attention_mask=read.present,
        decoder_input_ids=shifted(
            read.responses, config.pad_token_id, config.decoder_start_token_id
        ),
    ).logits
    return logits[_written(module, probe)].float()


@torch.no_grad()
def head_answers(model: Any, head: TrainedHead, probe: Probe) -> Tensor:
    """Return the same of a Transformer of transformers under the head that a run trained."""
    logits = head.module(model(**probe.inputs).last_hidden_state, probe.mask)
    return logits[probe.mask.bool()] if head.of_tokens else logits


def _written(module: Any, probe: Probe) -> Tensor:
    return module.sides(probe.batch).responses != IGNORED


def difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two models' logits; infinite where one is no number."""
    if one.shape != other.shape:
        return float("inf")
    found = float((one.double() - other.double()).abs().max())
    return float("inf") if math.isnan(found) else found


def require_same(what: str, found: Tensor, wanted: Tensor, most: float, remedy: str) -> float:
    """Refuse an export that answers otherwise than the run's own model.

    Parameters
    ----------
    most : float
        The largest difference that is let pass, where logits are of size 1 or less; of larger
        ones this part.

    Returns
    -------
    float
        The largest difference of logits.

    Raises
    ------
    TrainingError
        Names the figure.
    """
    largest = difference(found, wanted)
    limit = most * max(1.0, float(wanted.abs().max()))
    if not largest <= limit:
        raise TrainingError(
            f"{what} answers otherwise than the run's own model: logits differ by up to "
            f"{largest:.3g}, and {limit:.3g} is the limit",
            remedy,
        )
    return largest
