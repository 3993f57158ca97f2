"""Read a Hugging Face checkpoint folder: safe formats only, nothing from the network."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from fedllm.config import package_folder
from fedllm.errors import CheckpointError
from fedllm.models.architecture import (
    Architecture,
    attention,
    check_kind,
    find_architecture,
    options,
)
from fedllm.models.contents import (
    Fingerprints,
    check_contents,
    fingerprints,
    read_object,
    reading,
    state,
)
from fedllm.models.fit import check_settings, check_sizes, check_tokenizer, check_weights

__all__ = [
    "Fingerprints",
    "checkpoint_folder",
    "fingerprint",
    "fingerprints",
    "folder_of",
    "load_tokenizer",
    "load_weights",
    "read_config",
    "state",
]


_VOCABULARY = re.compile(r"^tokenizer\.json$|vocab|merges|tekken|tiktoken|spm|bpe|\.model$")


def checkpoint_folder(location: str) -> Path:
    """Return the folder that ``model.path`` names, if it holds one model and nothing else to load.

    Raises
    ------
    ConfigError
        If a ``package:`` location names a package that is not installed.
    CheckpointError
        If the folder or its ``config.json`` is missing, it holds no safetensors weights, or
        something that a library would load beside them; see `check_contents`.
    """
    folder = folder_of(location)
    if not folder.is_dir():
        raise CheckpointError(
            f"model.path: there is no folder {folder}",
            "check the path: it names a checkpoint's folder on this machine; nothing is fetched "
            "from a hub by its name",
        )
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json",
            "give the folder of a Hugging Face checkpoint, or make one with fedllm pretrain",
        )
    check_contents(folder)
    return folder


def folder_of(location: str) -> Path:
    """Return the folder that ``model.path`` names, whatever it holds.

    Raises
    ------
    ConfigError
        If a ``package:`` location names a package that is not installed.
    """
    return package_folder(location) if location.startswith("package:") else Path(location)


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 over all files of a checkpoint that count, wherever they lie."""
    return fingerprints(folder).current


def read_config(folder: Path, *, integers: bool = False) -> tuple[PretrainedConfig, Architecture]:
    """Read the configuration, with every dropout rate set to zero.

    Parameters
    ----------
    integers : bool
        Whether the weights beside it may be integers, as `fedllm.compression` writes them.

    Raises
    ------
    CheckpointError
        If it is damaged, of an architecture that is not supported, asks for code of its own,
        or describes another model than the weights are of.
    """
    path = folder / "config.json"
    values = read_object(path)
    check_kind(path, values.get("model_type"))
    check_settings(path, values)
    with reading(f"{path} is damaged", "use the config.json that came with the weights"):
        # Of what was checked: read from the folder again, it could lead to another file.
        config = CONFIG_MAPPING[str(values["model_type"])].from_dict(values)
        for name, value in config.to_dict().items():
            if "drop" in name and isinstance(value, int | float) and not isinstance(value, bool):
                setattr(config, name, 0.0)
        # A configuration may name other code for experts, which would be fetched.
        config._experts_implementation = "eager"
        weights = check_sizes(folder, config, integers=integers)
    return config, find_architecture(path, config, weights)


def load_weights(
    folder: Path,
    config: PretrainedConfig,
    architecture: Architecture,
    dtype: torch.dtype,
    *,
    language_model: bool,
) -> PreTrainedModel:
    """Load the Transformer, frozen, with its language model head or without.

    Raises
    ------
    CheckpointError
        If a file is damaged, or a weight is missing or of another shape.
    """
    with_head: Any = AutoModelForSeq2SeqLM if architecture.prompted else AutoModelForCausalLM
    auto: Any = with_head if language_model else AutoModel
    with (
        reading(
            f"the weights in {folder} cannot be loaded",
            "copy the checkpoint again; the files are cut short or do not fit config.json",
        ),
        quietly(),
    ):
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            generation_config=GenerationConfig(),
            **(attention(config) if language_model else options(config)),
        )
    check_weights(folder, model, info, architecture.lists)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.requires_grad_(False)
    # An encoder-decoder's two parts have settings of their own.
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            part.config.use_cache = False
    return model.train()


@contextmanager
def quietly() -> Iterator[None]:
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the folder's tokenizer as one that is its tokenizer.json and nothing else.

    A class that transformers has for a kind of model may cut text in other places, and one of
    them keeps something of a text from one call to the next: a record would change the tokens
    of others.
    """
    whole = (folder / "tokenizer.json").is_file()
    kind = PreTrainedTokenizerFast if whole else AutoTokenizer
    read = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if whole or not read.is_fast:
        return read
    # Made of older files by a class of its own; from here on it is what they come to.
    with tempfile.TemporaryDirectory() as made:
        read.save_pretrained(made)
        return PreTrainedTokenizerFast.from_pretrained(made, local_files_only=True)


def load_tokenizer(folder: Path, rows: int | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with its end token.

    Parameters
    ----------
    rows : int, optional
        Embeddings of the model that it is for; no token may lie beyond them.

    Raises
    ------
    CheckpointError
        If it is missing or damaged, or has tokens that the model has no embedding for.
    """
    check_contents(folder, weights=False)
    if not any(_VOCABULARY.search(file.name) for file in folder.iterdir()):
        # transformers would make one up.
        raise CheckpointError(
            f"{folder} holds no tokenizer", "copy the tokenizer.json that came with the weights"
        )
    with (
        reading(
            f"the tokenizer in {folder} cannot be loaded",
            "the folder needs the tokenizer.json that came with the weights",
        ),
        quietly(),
    ):
        tokenizer = _read_tokenizer(folder)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        # As `fedllm.data.encode` pads: places are then counted from the first token.
        tokenizer.padding_side = "right"
    if tokenizer.is_fast and getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        raise CheckpointError(
            f"the tokenizer in {folder} cuts words at random (dropout)",
            "set dropout to null in tokenizer.json, in a copy that all parties use",
        )
    if tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"the tokenizer in {folder} has neither a padding nor an end token",
            "set pad_token in tokenizer_config.json",
        )
    check_tokenizer(folder, tokenizer, rows)
    return tokenizer
