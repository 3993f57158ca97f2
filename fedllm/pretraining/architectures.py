"""Transformers of a named or given shape, through the configurations of `transformers`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForPreTraining,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from fedllm.errors import CheckpointError, ConfigError
from fedllm.models.contents import check_contents, read_object, reading
from fedllm.models.fit import check_settings, check_weights
from fedllm.pretraining.config import NetworkSection, OptimizationSection

HEAD_WIDTH = 64
_LONGEST_PLAIN_ATTENTION = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """Layers, hidden width, width inside the feed-forward part, and heads."""

    layers: int
    width: int
    inner: int
    heads: int
    key_value_heads: int


# Inner width near 8/3 of the width keeps SwiGLU at the cost of a plain feed-forward part of
# 4 times the width (Shazeer 2020).
SHAPES = {
    "1m": Shape(4, 128, 384, 2, 2),
    "10m": Shape(8, 320, 896, 5, 5),
    "100m": Shape(12, 768, 2048, 12, 12),
    "300m": Shape(24, 1024, 2816, 16, 16),
    "1b": Shape(16, 2048, 8192, 32, 8),
    "3b": Shape(28, 3072, 8192, 24, 8),
    "7b": Shape(32, 4096, 11008, 32, 32),
}


@dataclass(frozen=True, slots=True)
class Size:
    """Parameters of a model and an estimate of the memory that training it takes."""

    parameters: int
    training_bytes: int


def resolve_shape(section: NetworkSection) -> Shape:
    """Return the named shape with the section's own numbers in place.

    Raises
    ------
    ConfigError
        If the numbers do not fit together.
    """
    named = SHAPES[section.size]
    width = section.width or named.width
    inner = section.inner or (named.inner if section.width is None else _inner(width))
    heads = section.heads or (named.heads if section.width is None else max(1, width // HEAD_WIDTH))
    if section.key_value_heads is not None:
        key_value_heads = section.key_value_heads
    elif section.width is None and section.heads is None:
        key_value_heads = named.key_value_heads
    else:
        key_value_heads = heads
    if width % heads or (width // heads) % 2:
        raise ConfigError(
            f"model.width = {width} cannot be split into {heads} heads of an even width",
            f"heads of width {HEAD_WIDTH} are fastest",
        )
    if heads % key_value_heads:
        raise ConfigError(f"model.heads = {heads} is no multiple of model.key_value_heads")
    return Shape(section.layers or named.layers, width, inner, heads, key_value_heads)


def _inner(width: int) -> int:
    return max(64, round(width * 8 / 3 / 64) * 64)


def network_config(
    section: NetworkSection, training: OptimizationSection, tokenizer: PreTrainedTokenizerBase
) -> PretrainedConfig:
    """Return the `transformers` configuration of a new model.

    The vocabulary is rounded up to a multiple of 8, which matrix units need.
    """
    shape = resolve_shape(section)
    vocabulary = -(-len(tokenizer) // 8) * 8
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if section.architecture == "llama":
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=shape.width,
            intermediate_size=shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.key_value_heads,
            max_position_embeddings=training.sequence_length,
            tie_word_embeddings=section.tie_embeddings,
            rms_norm_eps=1e-5,
            **ids,
        )
    if section.architecture == "bert":
        return BertConfig(
            vocab_size=vocabulary,
            hidden_size=shape.width,
            intermediate_size=4 * shape.width if section.inner is None else shape.inner,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            max_position_embeddings=training.sequence_length,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            tie_word_embeddings=section.tie_embeddings,
            **ids,
        )
    return T5Config(
        vocab_size=vocabulary,
        d_model=shape.width,
        d_kv=shape.width // shape.heads,
        d_ff=shape.inner,
        num_layers=shape.layers,
        num_decoder_layers=shape.layers,
        num_heads=shape.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        decoder_start_token_id=tokenizer.pad_token_id,  # type: ignore[call-arg]
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


_NEW = {"llama": LlamaForCausalLM, "bert": BertForPreTraining, "t5": T5ForConditionalGeneration}
_LAYERS = {
    "llama": ("layers",),
    "bert": ("encoder.layer",),
    "t5": ("encoder.block", "decoder.block"),
}
_SAVED: dict[str, Any] = {
    "llama": AutoModelForCausalLM,
    "bert": AutoModelForPreTraining,
    "t5": AutoModelForSeq2SeqLM,
}


def build_model(
    section: NetworkSection,
    training: OptimizationSection,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
) -> PreTrainedModel:
    """Make a new model from a seed, or load the one to continue from; fp32 parameters.

    Raises
    ------
    CheckpointError
        If ``model.start`` holds no model of that architecture or is too small for the
        tokenizer or the sequence length.
    """
    if section.start is not None:
        return _continued(section, Path(section.start), training, tokenizer)
    config = network_config(section, training, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        model = _NEW[section.architecture](config)
    if section.architecture == "llama":
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=[tokenizer.eos_token_id, tokenizer.bos_token_id],
            pad_token_id=tokenizer.pad_token_id,
        )
    return model


def _continued(
    section: NetworkSection,
    folder: Path,
    training: OptimizationSection,
    tokenizer: PreTrainedTokenizerBase,
) -> PreTrainedModel:
    remedy = "check the path and model.architecture"
    what = f"model.start: {folder} holds no {section.architecture} model"
    if not (folder / "config.json").is_file():
        raise CheckpointError(what, remedy)
    check_contents(folder)
    values = read_object(folder / "config.json")
    if values.get("model_type") != section.architecture:
        raise CheckpointError(f"{what}, but {values.get('model_type')!r:.40}", remedy)
    check_settings(folder / "config.json", values | {"is_encoder_decoder": None})
    with reading(what, remedy):
        model, info = _SAVED[section.architecture].from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    check_weights(folder, model, info, _LAYERS[section.architecture])
    highest = max({*tokenizer.get_vocab().values(), *tokenizer.all_special_ids})
    if highest >= model.config.vocab_size:
        raise CheckpointError(
            f"model.start has {model.config.vocab_size} embeddings for {highest + 1} tokens",
            "leave tokenizer.path out: the checkpoint's own tokenizer is taken",
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and training.sequence_length > longest:
        raise CheckpointError(
            f"training.sequence_length = {training.sequence_length} is more than the "
            f"{longest} positions of model.start",
            f"set it to {longest} or less",
        )
    return model


def choose_attention(model: PreTrainedModel, device: torch.device, length: int) -> None:
    """Set the attention that is fastest in training; a saved configuration does not name it.

    On the CPUs of the first measurements plain matrix products beat the fused kernel by a quarter
    to a half up to rows of 1,024 tokens; on one with AMX the fused kernel was 4% ahead in a plain
    loop (``benchmarks/pretraining.py``). They keep all scores, so longer rows would cost too much
    memory.
    """
    plain = device.type == "cpu" and length <= _LONGEST_PLAIN_ATTENTION
    model.set_attn_implementation("eager" if plain else "sdpa")


def measure(model: PreTrainedModel, training: OptimizationSection) -> Size:
    """Count parameters and estimate the bytes of a training step.

    Parameters, gradients and at most two fp32 moments; per token of a microbatch about 16
    numbers of the hidden width a layer (Korthikanti et al. 2022, with fused attention), two
    fp32 rows of logits, and the scores of attention where they are kept (in bf16, in fp32,
    and their softmax).
    """
    parameters = sum(p.numel() for p in model.parameters())
    config = model.config
    tokens = (training.microbatch_rows or training.batch_rows) * training.sequence_length
    layers = config.num_hidden_layers * (2 if config.is_encoder_decoder else 1)
    activations = tokens * (layers * 16 * config.hidden_size * 2 + 2 * 4 * config.vocab_size)
    if config._attn_implementation == "eager":
        scores = tokens * training.sequence_length * config.num_attention_heads
        activations += layers * scores * (2 + 4 + 2)
    return Size(parameters, 16 * parameters + activations)
