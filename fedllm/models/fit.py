"""Whether the parts of a checkpoint fit each other, before anything is charged or trained."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fedllm.config import RunConfig
from fedllm.errors import CheckpointError, ConfigError
from fedllm.models.architecture import Architecture, is_encoder, is_encoder_decoder
from fedllm.models.contents import reading
from fedllm.models.heads import Head, LabelHead, LanguageHead

# Endings of tensors that older files have, and no model reads.
IDLE = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
# Keys of config.json that say how a model is loaded instead of what it is.
_STEERING = ("transformers_weights", "fusion_config", "distributed_config", "configuration_files")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "type_vocab_size",
    "max_position_embeddings",
    "sliding_window",
    "d_ff",
    "d_kv",
    "relative_attention_num_buckets",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
)
_LAYERS = ("num_hidden_layers", "num_decoder_layers", "decoder_layers")
_MAY_BE_NONE = ("type_vocab_size", "sliding_window")
_ROTARY = ("default", "linear", "llama3", "yarn")
_PROBE = "Zürich 2.50 € 你好 🙂\n\tx_y"
_MOST = 2**31
_INTEGERS = ("I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "F8_E4M3", "F8_E5M2", "F4")


def check_settings(path: Path, values: dict[str, Any]) -> None:
    """Refuse a ``config.json`` that asks for more than weights of a known architecture.

    Raises
    ------
    CheckpointError
        If it asks for code of its own, quantised weights, other files, or another use.
    """
    if values.get("auto_map"):
        raise CheckpointError(
            f"{path} asks for code of its own (auto_map), which is not run",
            "use a checkpoint that transformers loads without it; if the code is only a copy of "
            "what transformers has, remove auto_map from a copy of the folder",
        )
    if values.get("quantization_config") or values.get("compression_config"):
        method = (values.get("quantization_config") or {}).get("quant_method", "compressed")
        raise CheckpointError(
            f"{path}: the weights are quantised ({method!s:.40}); quantised checkpoints are not "
            "supported",
            "use the model's float16, bfloat16 or float32 checkpoint (its name usually lacks "
            "GPTQ, AWQ, bnb or FP8), and let the run round it when it is loaded: "
            "model.quantization = 'int8' or 'int4', with model.precision = 'bfloat16'",
        )
    for key in _STEERING:
        if values.get(key):
            raise CheckpointError(
                f"{path}: {key} is not supported: it changes how the model is loaded",
                f"remove {key}, and keep the weights in model.safetensors or behind "
                "model.safetensors.index.json",
            )
    kind = values.get("model_type")
    plain_values = {"is_decoder": False, "add_cross_attention": False}
    plain_values["is_encoder_decoder"] = is_encoder_decoder(kind)
    plain_values |= {} if is_encoder(kind) else {"is_causal": True}
    for key, plain in plain_values.items():
        if values.get(key, plain) not in (plain, None):
            raise CheckpointError(
                f"{path}: {key} = {values[key]!r} is not supported for {kind!r} models",
                "use a plain encoder or decoder",
            )


def check_sizes(folder: Path, config: PretrainedConfig, *, integers: bool = False) -> int:
    """Compare the numbers of a configuration with the headers of the weights.

    Parameters
    ----------
    integers : bool
        Whether weights may be integers, as `fedllm.compression` writes them.

    Returns
    -------
    int
        How many numbers the weights hold.

    Raises
    ------
    CheckpointError
        If the weights cannot be read, or the configuration describes a model larger than they
        are, or one whose layers depend on what else is in a batch.
    """
    tensors, values = _headers(folder, integers)
    path = folder / "config.json"
    remedy = "use the config.json that came with the weights"
    # What a configuration asks for is made before it is compared with the weights.
    most = (
        dict.fromkeys(_SIZES, values)
        | dict.fromkeys(_LAYERS, tensors)
        | {
            "sliding_window": _MOST,
            "max_position_embeddings": _MOST if hasattr(config, "rope_parameters") else values,
        }
    )
    # Parts of which a family of models has any number, none included.
    counted = {n for n in config.to_dict() if n.startswith(("num_", "n_"))} - most.keys()
    for name, bound in (most | dict.fromkeys(sorted(counted), values)).items():
        value = getattr(config, name, None)
        if value is None or (name in counted and type(value) is not int):
            continue
        least = 0 if name in counted or name in _MAY_BE_NONE else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= bound:
            raise CheckpointError(
                f"{path}: {name} = {value!r:.60} does not fit the weights beside it", remedy
            )
    for name in _TOKEN_IDS:
        value = getattr(config, name, None)
        for one in value if isinstance(value, list) else [value]:
            whole = isinstance(one, int) and not isinstance(one, bool)
            if one is not None and not (whole and 0 <= one < config.vocab_size):
                raise CheckpointError(
                    f"{path}: {name} = {one!r:.60} is none of the {config.vocab_size} tokens",
                    "use the config.json that came with the weights, or set the token's id there",
                )
    kinds = _rope_types(getattr(config, "rope_parameters", None))
    if other := next((kind for kind in kinds if kind not in _ROTARY), None):
        # With these a record's states depend on the longest text of its batch, and so on others.
        raise CheckpointError(
            f"{path}: rotary positions of type {other!r:.40} are not supported",
            f"use a model with one of {', '.join(_ROTARY)}",
        )
    return values


def _rope_types(parameters: Any) -> list[Any]:
    if not isinstance(parameters, dict):
        return []
    parts = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    return [part["rope_type"] for part in parts if "rope_type" in part]


def _headers(folder: Path, integers: bool) -> tuple[int, int]:
    """Return how many tensors the weights have, and how many numbers."""
    tensors = values = 0
    for path in sorted(folder.glob("*.safetensors")):
        with (
            reading(f"{path} is damaged", "copy the checkpoint again"),
            safe_open(path, framework="pt") as file,
        ):
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                held = not integers and part.get_dtype() in _INTEGERS
                if name.endswith("weight") and held:
                    raise CheckpointError(
                        f"{path}: {name} is quantised ({part.get_dtype()}); quantised checkpoints "
                        "are not supported",
                        "use the model's float16, bfloat16 or float32 checkpoint, and let the run "
                        "round it when it is loaded (model.quantization)",
                    )
                tensors += 1
                values += prod(part.get_shape())
    return tensors, values


def check_weights(
    folder: Path, model: PreTrainedModel, info: dict[str, Any], lists: Sequence[str]
) -> None:
    """Refuse weights that are not all there, are of more layers than the model, or not finite.

    Raises
    ------
    CheckpointError
        Names the first of them.
    """
    wrong = sorted(str(name) for name in {*info["missing_keys"], *info["mismatched_keys"]})
    if wrong:
        # transformers would fill these with random numbers.
        raise CheckpointError(
            f"the checkpoint {folder} lacks weights that config.json asks for: {_few(wrong)}",
            "use a checkpoint whose config.json and weights belong together",
        )
    # A head or a pooler that is not used may be left over, a part of the layers not.
    left = [
        name
        for name in sorted(map(str, info["unexpected_keys"]))
        if any(f".{layers}." in f".{name}" for layers in lists) and not name.endswith(IDLE)
    ]
    if left:
        raise CheckpointError(
            f"the checkpoint {folder} has weights that config.json does not know: {_few(left)}",
            "use a checkpoint whose config.json and weights belong together",
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise CheckpointError(
                f"{folder}: weight {name} holds NaN or infinity", "use another checkpoint"
            )


def _few(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, rows: int | None) -> None:
    """Refuse a tokenizer that fails on some text, or has tokens beyond the model's embeddings.

    Raises
    ------
    CheckpointError
        Names the first token that has no embedding.
    """
    with reading(
        f"the tokenizer in {folder} does not work",
        "use the tokenizer's files that came with the weights",
    ):
        vocabulary = {int(i): str(token) for token, i in tokenizer.get_vocab().items()}
        ids = {*vocabulary, *tokenizer.all_special_ids, *tokenizer(_PROBE)["input_ids"]}
        beyond = [] if rows is None else sorted(i for i in ids if not 0 <= i < rows)
        bare = vocabulary.keys() <= set(tokenizer.all_special_ids)
    if bare:
        # transformers makes one up where the files are missing.
        raise CheckpointError(
            f"the tokenizer in {folder} has no tokens but special ones",
            "copy the tokenizer's files (tokenizer.json) that came with the weights",
        )
    if beyond:
        token = vocabulary.get(beyond[0], "?")
        raise CheckpointError(
            f"the tokenizer in {folder} has {len(beyond)} tokens that the model has no embedding "
            f"for: the first is {beyond[0]} ({token!r:.60}), and the model has {rows}",
            "use the tokenizer that came with the weights, or give the model more embeddings "
            "(transformers: resize_token_embeddings) and save both together",
        )


def check_head(config: RunConfig, head: Head, kind: str, architecture: Architecture) -> None:
    """Refuse what a base model cannot do.

    Raises
    ------
    ConfigError
        If a head of labels has fewer than two, a language head stands on an encoder, or a task
        has no prompts for an encoder-decoder.
    """
    if isinstance(head, LabelHead) and len(head.labels) < 2:
        raise ConfigError(
            f"classification needs at least two labels; there are {len(head.labels)}",
            "set data.labels, or a data.test file that holds every label",
        )
    if isinstance(head, LanguageHead) and not architecture.causal:
        raise ConfigError(
            f"task {config.task!r} needs a causal model; {kind!r} is an encoder",
            "use a decoder, or task = 'classification'",
        )
    if architecture.prompted and not (isinstance(head, LanguageHead) and head.prompted):
        raise ConfigError(
            f"task {config.task!r} has no prompts for the encoder of {kind!r} to read",
            "use a decoder or an encoder, or task = 'instruction'",
        )


def check_length(architecture: Architecture, tokens: int, key: str = "model.max_length") -> None:
    """Refuse texts that are longer than what the model was made for.

    Raises
    ------
    ConfigError
        If they are; names ``key``, which sets their length.
    """
    longest = architecture.positions
    if longest is not None and tokens > longest:
        raise ConfigError(
            f"{key} = {tokens}: the model has {longest} positions", f"set it to {longest} or less"
        )


def check_padding(folder: Path, architecture: Architecture, pad: int) -> None:
    """Refuse padding that the model would count as text.

    Raises
    ------
    CheckpointError
        If the model counts positions by a padding token that is not the tokenizer's.
    """
    if architecture.counted_from is not None and pad != architecture.counted_from:
        raise CheckpointError(
            f"{folder}: the padding token is {pad} in the tokenizer and "
            f"{architecture.counted_from} in the model, which counts positions by it",
            "use the config.json and the tokenizer that came with the weights",
        )
