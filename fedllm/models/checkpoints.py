"""Read a Hugging Face checkpoint folder: safe formats only, nothing from the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from fedllm.canonical import read_object
from fedllm.config import package_folder
from fedllm.errors import CheckpointError

_HASHED_SUFFIXES = (".safetensors", "config.json", "tokenizer.json", "vocab.txt", "merges.txt")


@dataclass(frozen=True, slots=True)
class Architecture:
    """What fedllm needs to know of a family of Transformers.

    Attributes
    ----------
    layers : str
        Dotted name of the list of layers inside the stack.
    query_value : tuple of str
        Names of the linear layers that compute query and value.
    causal : bool
        Whether tokens see only what comes before them.
    """

    layers: str
    query_value: tuple[str, ...]
    causal: bool


_LLAMA = Architecture("layers", ("q_proj", "v_proj"), causal=True)
_BERT = Architecture("encoder.layer", ("query", "value"), causal=False)

ARCHITECTURES: dict[str, Architecture] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "gpt2": Architecture("h", ("c_attn",), causal=True),
    "bert": _BERT,
    "roberta": _BERT,
}


def checkpoint_folder(location: str) -> Path:
    """Return the folder that ``model.path`` names.

    Raises
    ------
    ConfigError
        If a ``package:`` location names a package that is not installed.
    CheckpointError
        If the folder or its ``config.json`` is missing, or it holds no safetensors file.
    """
    folder = package_folder(location) if location.startswith("package:") else Path(location)
    if not folder.is_dir():
        raise CheckpointError(f"model.path: there is no folder {folder}", "check the path")
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} has no config.json",
            "give the folder of a Hugging Face checkpoint, or make one with fedllm pretrain",
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no .safetensors file",
            "save it with save_pretrained; pickled .bin files can run code and are not read",
        )
    return folder


def fingerprint(folder: Path) -> str:
    """Return the SHA-256 over weights, configuration and vocabulary, wherever they lie."""
    digest = hashlib.sha256(b"fedllm.checkpoint.v1\n")
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(_HASHED_SUFFIXES))
    for path in files:
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


def read_config(folder: Path) -> tuple[PretrainedConfig, Architecture]:
    """Read the configuration, with every dropout rate set to zero.

    Raises
    ------
    CheckpointError
        If it is damaged, of an architecture that is not supported, or asks for code of its own.
    """
    try:
        content = (folder / "config.json").read_bytes()
        kind = read_object(content)["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged: {error!r}") from None
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{folder}: models of type {kind!r} are not supported",
            f"use one of {', '.join(ARCHITECTURES)}",
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged: {error}") from None
    for name, value in config.to_dict().items():
        if ("drop" in name) and isinstance(value, int | float) and not isinstance(value, bool):
            setattr(config, name, 0.0)
    return config, ARCHITECTURES[kind]


def load_weights(
    folder: Path, config: PretrainedConfig, dtype: torch.dtype, *, language_model: bool
) -> PreTrainedModel:
    """Load the Transformer, frozen, with its language model head or without.

    Raises
    ------
    CheckpointError
        If a file is damaged, or a weight is missing or of another shape.
    """
    auto: Any = AutoModelForCausalLM if language_model else AutoModel
    options: dict[str, Any] = {}
    if not language_model and config.model_type in ("bert", "roberta"):
        options["add_pooling_layer"] = False
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except Exception as error:
        raise CheckpointError(
            f"the weights in {folder} cannot be loaded: {error}",
            "copy the checkpoint again; the files are cut short or do not fit config.json",
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    wrong = sorted(str(name) for name in {*info["missing_keys"], *info["mismatched_keys"]})
    if wrong:
        # transformers would fill these with random numbers.
        raise CheckpointError(
            f"the checkpoint {folder} lacks weights that config.json asks for: "
            f"{', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}",
            "use a checkpoint whose config.json and weights belong together",
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CheckpointError(f"{folder}: weight {name} holds NaN or infinity")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.requires_grad_(False)
    model.config.use_cache = False
    return model.train()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer; one without a padding token pads with its end token.

    Raises
    ------
    CheckpointError
        If it is missing or damaged.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise CheckpointError(
            f"the tokenizer in {folder} cannot be loaded: {error}",
            "the folder needs a tokenizer.json beside the weights",
        ) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"the tokenizer in {folder} has neither a padding nor an end token",
                "set pad_token in tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
