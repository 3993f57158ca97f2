"""What a base model's folder holds, as somebody asks who has to choose one or to allow it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import safe_open

from fedllm.models.architecture import is_encoder
from fedllm.models.checkpoints import (
    checkpoint_folder,
    fingerprint,
    load_tokenizer,
    read_config,
)

# The head of a model card, between two lines of dashes (Hugging Face's form).
_CARD_HEAD = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LICENCE_LINE = re.compile(r"^license(?:_name)?:\s*[\"']?([^\"'\n#]{1,80})", re.MULTILINE)
LICENCE_FILE = re.compile(r"(LICENSE|LICENCE|NOTICE|USE_POLICY)(\.(txt|md))?", re.IGNORECASE)
_MOST_OF_A_CARD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A base model that fedllm can use.

    Attributes
    ----------
    folder : str
        Where it lies.
    model_type : str
        transformers' word for its kind.
    causal : bool
        Whether it continues texts; an encoder does not.
    layers, hidden_size, vocabulary : int
        Sizes; ``vocabulary`` counts rows of embeddings.
    query_value : tuple of str
        The linear layers of each layer that `lora.target_modules = "auto"` adapts.
    positions : int or None
        Most tokens of a text; None where the model sets no limit.
    parameters : int
        Numbers in the files.
    stored : mapping of str to int
        How many of them in which format, such as "BF16".
    licence : str
        As the card says it, or the names of files that do; empty where nothing does.
    fingerprint : str
        SHA-256 of all files that count, as sites allow models by.
    tokens : int
        Of the tokenizer.
    """

    folder: str
    model_type: str
    causal: bool
    layers: int
    hidden_size: int
    vocabulary: int
    query_value: tuple[str, ...]
    positions: int | None
    parameters: int
    stored: Mapping[str, int]
    licence: str
    fingerprint: str
    tokens: int


def facts_of(location: str) -> ModelFacts:
    """Read what a folder says of its model; the weights are hashed and not loaded.

    Parameters
    ----------
    location : str
        As in ``model.path``.

    Raises
    ------
    ConfigError, CheckpointError
        If no run could use it, with the reason.
    """
    folder = checkpoint_folder(location)
    config, architecture = read_config(folder)
    tokenizer = load_tokenizer(folder, config.vocab_size)
    stored = stored_as(folder)
    return ModelFacts(
        folder=location,
        model_type=str(config.model_type),
        causal=not is_encoder(config.model_type),
        layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        vocabulary=int(config.vocab_size),
        query_value=architecture.query_value,
        positions=architecture.positions,
        parameters=sum(stored.values()),
        stored=stored,
        licence=licence_of(folder),
        fingerprint=fingerprint(folder),
        tokens=len(tokenizer),
    )


def licence_of(folder: Path) -> str:
    """Return a licence as the model's card names it, or the files that hold one."""
    card = folder / "README.md"
    if card.is_file():
        with card.open("rb") as stream:
            text = stream.read(_MOST_OF_A_CARD_BYTES).decode("utf-8", errors="replace")
        head = _CARD_HEAD.search(text.replace("\r\n", "\n"))
        named = _LICENCE_LINE.search(head[1]) if head else None
        if named:
            return named[1].strip()
    files = sorted(path.name for path in folder.iterdir() if LICENCE_FILE.fullmatch(path.name))
    return ", ".join(files)


def stored_as(folder: Path) -> dict[str, int]:
    """Return how many numbers a checkpoint stores in which format, in safetensors' words."""
    stored: dict[str, int] = {}
    for kind, values in _tensors(folder):
        stored[kind] = stored.get(kind, 0) + values
    return stored


def _tensors(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                yield str(part.get_dtype()), prod(part.get_shape())
