"""What the loop works with: objective, training pieces and held-out pieces of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.errors import DataError
from fedllm.pretraining.config import PretrainConfig
from fedllm.pretraining.manifest import Manifest, open_shards
from fedllm.pretraining.masked import SPECIAL_TOKENS, MaskedLanguage, MaskedVocabulary
from fedllm.pretraining.objectives import NextToken, Objective
from fedllm.pretraining.sampling import PackedRows, PassagePairs, Passages, Pieces, Sampler
from fedllm.pretraining.spans import SpanCorruption, sentinel_ids


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Pieces of each held-out text by its name.

    ``text_bytes`` are the UTF-8 bytes of each whose every token is predicted.
    """

    pieces: dict[str, list[NDArray[np.int64]]]
    text_bytes: dict[str, int]


def make_objective(
    config: PretrainConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    manifest: Manifest,
) -> Objective:
    """Put the model into the objective that the run asks for.

    Raises
    ------
    CheckpointError
        If the tokenizer lacks the objective's special tokens.
    """
    length = config.training.sequence_length
    match config.objective:
        case "causal":
            return NextToken(model, manifest.boundary)
        case "masked":
            return MaskedLanguage(model, MaskedVocabulary.of(tokenizer), length)
        case "span":
            end = tokenizer.eos_token_id
            sentinels = sentinel_ids(tokenizer)
            return SpanCorruption(
                model, sentinels, manifest.boundary if end is None else end, length
            )


def make_sampler(config: PretrainConfig, manifest: Manifest, tokens: Path) -> Sampler:
    """Open the training shards below ``tokens`` in the run's mixture.

    Raises
    ------
    DataError
        If a source has too little text for one piece.
    """
    sources: list[Pieces] = []
    for number, part in enumerate(manifest.sources):
        shards = open_shards(tokens, part, manifest.dtype)
        pieces = _pieces(config, shards, manifest.boundary, number)
        if pieces.count(0) == 0:
            raise DataError(
                f"{part.location} has too little text: {part.tokens} tokens for rows of "
                f"{config.training.sequence_length}",
                "add text, or lower training.sequence_length",
            )
        sources.append(pieces)
    return Sampler(sources, config.data.weights, config.seed, manifest.training_fingerprint)


def held_out_text(config: PretrainConfig, manifest: Manifest, tokens: Path) -> HeldOut:
    """Open the held-out shards below ``tokens``."""
    pieces, text_bytes = {}, {}
    for number, part in enumerate(manifest.evaluation):
        if not part.documents:
            continue
        shards, name = open_shards(tokens, part, manifest.dtype), part.name
        if config.objective == "causal":
            pieces[name] = whole_stream(shards, config.training.sequence_length)
            text_bytes[name] = part.text_bytes
        else:
            source = _pieces(config, shards, manifest.boundary, len(manifest.sources) + number)
            pieces[name] = [source.piece(0, i) for i in range(source.count(0))]
    return HeldOut(pieces, text_bytes)


def whole_stream(shards: Sequence[NDArray[Any]], length: int) -> list[NDArray[np.int64]]:
    """Cut packed shards into rows that predict every token once; the last may be short."""
    return [
        shard[start : start + length + 1].astype(np.int64)
        for shard in shards
        for start in range(0, len(shard) - 1, length)
    ]


def _pieces(
    config: PretrainConfig, shards: Sequence[NDArray[Any]], boundary: int, source: int
) -> Pieces:
    length, seed = config.training.sequence_length, config.seed + source
    match config.objective:
        case "causal":
            return PackedRows(shards, length, seed)
        case "masked":
            return PassagePairs(Passages(shards, length - SPECIAL_TOKENS, boundary), seed)
        case "span":
            # The encoder's input ends with the end token, and is shorter than the passage
            # unless every span is a single token.
            return Passages(shards, length - 1, boundary)
