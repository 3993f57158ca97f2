"""What fedllm must know of a Transformer, found from its structure before weights are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.pytorch_utils import Conv1D

from fedllm.errors import CheckpointError
from fedllm.models.contents import reading
from fedllm.models.layers import REMEDY, layers_by_part, list_of_layers

# What a layer may do with tokens: attend to all of its record, or to those that are near.
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
# Names of linear layers, in the order in which they are looked for: query and value each by
# itself, then together with the key.
_SEPARATE = (
    re.compile(r"q|wq|query|q_(proj|lin)|query_proj|project_q", re.IGNORECASE),
    re.compile(r"v|wv|value|v_(proj|lin)|value_proj|project_v", re.IGNORECASE),
)
_FUSED = re.compile(r"w?qkv|qkv_proj|query_key_value|c_attn|in_proj", re.IGNORECASE)
# Batch normalisation, and whatever else a library calls so.
_OVER_THE_BATCH = re.compile(r"batch_?norm|BatchRenorm", re.IGNORECASE)
# What a text to read ends with, what a text to write begins with, and what fills both up.
_NEEDED_TOKENS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
_MOST_IN_BUFFERS = 2**30


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the rest of fedllm asks about a family of Transformers.

    Attributes
    ----------
    kind : str
        The type of model (``model_type``).
    layers : str
        Dotted name of the list of layers inside the stack; of the decoder's, where it has two.
    linear : tuple of str
        Names of the linear layers inside these, each once.
    causal : bool
        Whether tokens see only what comes before them.
    positions : int, optional
        Most tokens of a text; None where the model sets no limit.
    counted_from : int, optional
        The padding token, where a token's position is counted by how many before it are none
        (RoBERTa and its kin).
    encoder_layers : str, optional
        Dotted name of the encoder's list of layers, where a decoder answers what an encoder reads.
    """

    kind: str
    layers: str
    linear: tuple[str, ...]
    causal: bool
    positions: int | None
    counted_from: int | None = None
    encoder_layers: str | None = None

    @property
    def prompted(self) -> bool:
        """Whether it is an encoder-decoder, which has one text to read and one to write."""
        return self.encoder_layers is not None

    @property
    def query_value(self) -> tuple[str, ...]:
        """Names of the linear layers that compute query and value; empty where none look so."""
        return query_value(self.kind, self.linear)

    @property
    def lists(self) -> tuple[str, ...]:
        """Dotted names of the lists that hold all layers; an encoder's comes first."""
        return tuple(name for name in (self.encoder_layers, self.layers) if name is not None)

    def layer_names(self, stack: nn.Module) -> list[str]:
        """Return the dotted name of each layer inside ``stack``, from the lowest on."""
        return [
            f"{name}.{place}"
            for name in self.lists
            for place, _ in enumerate(cast(nn.ModuleList, stack.get_submodule(name)))
        ]


def is_encoder_decoder(kind: object) -> bool:
    """Whether models of a type (``model_type``) write what answers another text."""
    return kind in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES


def is_encoder(kind: object) -> bool:
    """Whether models of a type (``model_type``) were trained to fill gaps, so see both sides."""
    return kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def check_kind(path: Path, kind: object) -> None:
    """Refuse a type of model that transformers has no encoder or decoder of text for.

    Raises
    ------
    CheckpointError
        Names the type.
    """
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() | MODEL_FOR_MASKED_LM_MAPPING_NAMES.keys()
    if not isinstance(kind, str) or not (kind in known or is_encoder_decoder(kind)):
        raise CheckpointError(
            f"{path.parent}: models of type {kind!r:.60} are not supported: transformers has no "
            "decoder or encoder of texts of that type",
            REMEDY,
        )


def base_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the Transformer without a head."""
    found: Any = AutoModel._model_mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def options(config: PretrainedConfig) -> dict[str, Any]:
    """Return what the class of the Transformer without a head is made with."""
    # A configuration may name other kinds of attention, down to kernels that would be fetched.
    plain = attention(config)
    no_pooler = "add_pooling_layer" in signature(base_class(config).__init__).parameters
    return plain | ({"add_pooling_layer": False} if no_pooler else {})


def attention(config: PretrainedConfig) -> dict[str, str]:
    """Return how the model attends: torch's fast attention where its class knows it."""
    fast = base_class(config)._supports_sdpa
    return {"attn_implementation": "sdpa" if fast else "eager"}


def find_architecture(path: Path, config: PretrainedConfig, weights: int) -> Architecture:
    """Build the model without memory for its weights, and look at its parts.

    Parameters
    ----------
    path : Path
        The configuration's file, for words.
    weights : int
        Numbers in the checkpoint's files; a model far larger is none of theirs.

    Raises
    ------
    CheckpointError
        If the model cannot be built, has no one list of layers, or holds something that cannot
        be trained privately here: says which, and why.
    """
    kind = str(config.model_type)
    for reason in _reasons_of_config(config):
        raise CheckpointError(f"{path.parent}: {kind!r} models with {reason}", REMEDY)
    remedy = "use the config.json that came with the weights"
    with reading(f"{path} describes no model that transformers can build", remedy):
        model = skeleton(config)
        if sum(p.numel() for p in model.parameters()) > 10 * weights:
            raise CheckpointError(f"{path} describes a far larger model than the weights", remedy)
        if sum(buffer.numel() for buffer in model.buffers()) > _MOST_IN_BUFFERS:
            raise CheckpointError(f"{path} asks for more memory than any model needs", remedy)
        for reason in _reasons_of_parts(model):
            raise CheckpointError(f"{path.parent}: {kind!r} models with {reason}", REMEDY)
        two = bool(getattr(config, "is_encoder_decoder", False))
        names = {
            part: list_of_layers(path, model, kind, part, count)
            for part, count in layers_by_part(config, two).items()
        }
        layers = names["decoder." if two else ""]
        counted_from = _counted_from(model)
        return Architecture(
            kind=kind,
            layers=layers,
            linear=linear_names(model.get_submodule(layers)),
            causal=two or not is_encoder(kind),
            positions=_positions(config, counted_from),
            counted_from=counted_from,
            encoder_layers=names.get("encoder."),
        )


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """Return the Transformer without a head, and without memory for its weights."""
    of_class, made_with = base_class(config), options(config)
    with torch.device("meta"):
        chosen = deepcopy(config)
        chosen._attn_implementation = made_with.pop("attn_implementation")
        return of_class(chosen, **made_with)


def _reasons_of_config(config: PretrainedConfig) -> Iterator[str]:
    if config.sub_configs:
        yield f"parts of their own ({', '.join(config.sub_configs)}) are not supported"
    if getattr(config, "is_encoder_decoder", False):
        if not is_encoder_decoder(config.model_type):
            yield "an encoder and a decoder are not supported"
        for name in _NEEDED_TOKENS:
            if type(getattr(config, name, None)) is not int:
                yield f"no {name} in config.json are not supported"
    if base_class(config)._is_stateful:
        yield "a state that they carry from token to token are not supported"
    if getattr(config, "attention_type", None) == "block_sparse":
        # One short text switches it off for all that come later.
        yield "attention to blocks (attention_type = 'block_sparse') are not supported"
    kinds = getattr(config, "layer_types", None)
    for other in sorted({str(kind) for kind in kinds or ()} - set(_ATTENTION)):
        yield f"layers of type {other!r:.40} are not supported"
    if any("capacity" in name for name in config.to_dict()):
        # Which tokens an expert drops then hangs on all others of the batch.
        yield "experts that take only so many tokens of a batch are not supported"


def _reasons_of_parts(model: PreTrainedModel) -> Iterator[str]:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or _OVER_THE_BATCH.search(
            type(module).__name__
        ):
            yield f"batch normalisation ({name}) mix records: private training is not possible"


def linear_names(layers: nn.Module) -> tuple[str, ...]:
    """Return the names of the linear layers inside, without what leads to them, each once."""
    names = (
        name.rpartition(".")[2]
        for name, part in layers.named_modules()
        if isinstance(part, nn.Linear | Conv1D)
    )
    return tuple(dict.fromkeys(names))


def query_value(kind: str, linear: Sequence[str]) -> tuple[str, ...]:
    """Return which of a model's linear layers compute query and value.

    Those of peft's own table for the type of model, as far as the layers have them and they
    look like query or value; else those that look so.
    """
    # Asked where adapters are made: a head alone needs no peft.
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT_TARGETS

    table = PEFT_TARGETS.get(kind)
    listed = [name for name in linear if isinstance(table, list) and name in table]
    return _look_so(listed) or _look_so(linear)


def _look_so(names: Sequence[str]) -> tuple[str, ...]:
    query, value = ([n for n in names if pattern.fullmatch(n)] for pattern in _SEPARATE)
    if query and value:
        return (*query, *value)
    return tuple(name for name in names if _FUSED.fullmatch(name))


def _counted_from(model: PreTrainedModel) -> int | None:
    for name, part in model.named_modules():
        if isinstance(part, nn.Embedding) and "position" in name and part.padding_idx is not None:
            return int(part.padding_idx)
    return None


def _positions(config: PretrainedConfig, counted_from: int | None) -> int | None:
    longest = getattr(config, "max_position_embeddings", None)
    if longest is None or counted_from is None:
        return longest
    # Positions start after the padding token's.
    return int(longest) - counted_from - 1
