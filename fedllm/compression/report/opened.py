"""A compared model in memory, the inputs that all get, and how it answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedllm.compression.texts import padded
from fedllm.config.task import columns_read, trains_a_head
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.errors import ConfigError, DataError
from fedllm.models.behaviour import Behaviour
from fedllm.models.generation import Generator, Writing
from fedllm.models.language_model import LanguageModel
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import LayerStack
from fedllm.serving.exported import load_exported
from fedllm.tasks import task_of
from fedllm.tasks.public_texts import Tokens

TOGETHER = 16
NEW_TOKENS = 16
_ALONE, _BATCHES = 4, 2
Answer = Callable[[Sequence[Tokens]], object]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What every model gets.

    Attributes
    ----------
    records : sequence of Record
        On which quality is measured.
    dataset : EncodedDataset
        The same as tokens.
    alone : tuple
        Texts, or prompts, each of which is answered by itself.
    together : tuple of tuple
        Texts that are answered at once.
    """

    records: Sequence[Record]
    dataset: EncodedDataset
    alone: tuple[tuple[Tokens, ...], ...]
    together: tuple[tuple[Tokens, ...], ...]


def open_model(folder: Path) -> SharedModel:
    """Load a whole model so that its task can measure it.

    Raises
    ------
    ConfigError
        If it is an encoder-decoder.
    FedllmError
        As `load_exported`.
    """
    found = load_exported(folder, "cpu")
    if found.model is not None:
        return found.model
    if found.network.config.is_encoder_decoder:
        raise ConfigError(
            f"{folder} is an encoder-decoder, which is not made smaller here",
            "compare models of one stack",
        )
    behaviour = Behaviour(int(found.network.config.hidden_size), 0)
    base: Any = found.network.base_model
    return SharedModel(
        module=LanguageModel(found.network, LayerStack(base, found.layers, 0, behaviour)).eval(),
        tokenizer=found.tokenizer,
        task=found.task,
        labels=(),
        fingerprint="",
        peft=None,
    )


def make_inputs(model: SharedModel, records: Sequence[Record], max_length: int) -> Inputs:
    """Turn records into what every model gets.

    Raises
    ------
    DataError
        If a record cannot be learned from, or there are too few.
    """
    if len(records) < TOGETHER:
        raise DataError(
            f"there are {len(records)} records, and {TOGETHER} are answered at once",
            f"give a file of {TOGETHER} records at least; some hundreds tell models apart",
        )
    task = task_of(model)
    dataset = task.encode(records, model.tokenizer, max_length, model.labels)
    chosen = np.linspace(0, len(records) - 1, min(_BATCHES * TOGETHER, len(records))).astype(int)
    how = task.prompting()
    if how is None:
        ends = dataset.offsets
        texts = [tuple(dataset.tokens[ends[i] : ends[i + 1]].tolist()) for i in chosen]
    else:
        prompting, room = how(model.tokenizer), _room(max_length)
        asked = texts_of(model, [records[i] for i in chosen])
        texts = [tuple(prompting.prompt(text, room).ids) for text in asked]
    alone = texts[:: max(1, len(texts) // _ALONE)][:_ALONE]
    starts = range(0, len(texts) - TOGETHER + 1, TOGETHER)
    return Inputs(
        records,
        dataset,
        tuple((text,) for text in alone),
        tuple(tuple(texts[start : start + TOGETHER]) for start in starts),
    )


def texts_of(model: SharedModel, records: Sequence[Record]) -> list[str]:
    """Return of each record the text that a model is asked."""
    role = next(iter(columns_read(model.task)))
    return [record.values[role] for record in records]


def answering(model: SharedModel) -> Answer:
    """Return what answers several texts at once: labels each, or goes on for `NEW_TOKENS` tokens.

    A text that is written has no end: all models write as many tokens.
    """
    module: Any = model.module
    if trains_a_head(model.task):
        pad = int(model.tokenizer.pad_token_id or 0)
        return lambda texts: module(padded(texts, pad))
    generator = Generator(module.backbone, model.tokenizer, ())
    writing = Writing(NEW_TOKENS)
    return lambda texts: generator.write(texts, writing, rows=len(texts))


def require_same_tokens(name: str, model: SharedModel, inputs: Inputs, max_length: int) -> None:
    """Refuse a model that reads the records as other tokens.

    Raises
    ------
    ConfigError
    """
    mine = task_of(model).encode(inputs.records, model.tokenizer, max_length, model.labels)
    if not np.array_equal(mine.tokens, inputs.dataset.tokens):
        raise ConfigError(
            f"{name} has another tokenizer than the original: it reads the records as other tokens",
            "compare models that were made of one run",
        )


def _room(max_length: int) -> int:
    return max_length - min(NEW_TOKENS, (max_length + 1) // 2)
