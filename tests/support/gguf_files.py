"""GGUF files of tiny random models, written as llama.cpp's converter lays them out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

TEXTS = ["the patient has a fever and a cough", "my card was not accepted at the counter"] * 4
_SPECIAL = ["<|endoftext|>", "<|pad|>"]


def byte_pairs() -> Tokenizer:
    """Train a small byte-level tokenizer, with an end token 0 and a padding token 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def tiny_model(kind: str, rows: int) -> PreTrainedModel:
    """Make a random decoder of two layers with grouped queries."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=rows,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=kind != "llama",
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def write(
    path: Path,
    kind: str,
    quantised: gguf.GGMLQuantizationType | None = None,
    architecture: str | None = None,
    licence: str = "apache-2.0",
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> PreTrainedModel:
    """Write a model of a kind ("llama" or "qwen2") with its tokenizer; returns the model.

    ``architecture`` is what the file calls it, and ``more`` adds what else it says.
    """
    tokenizer = byte_pairs()
    model = tiny_model(kind, tokenizer.get_vocab_size())
    config = model.config
    writer = gguf.GGUFWriter(path, architecture or kind)
    writer.add_name("tiny")
    writer.add_license(licence)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _write_tokenizer(writer, tokenizer, kind)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = _laid_out(kind, name, tensor.numpy(), config)
        its_name = names.get_name(name, (".weight", ".bias"))
        if its_name is None:
            raise ValueError(f"no GGUF name for {name}")
        if quantised is not None and values.ndim == 2:
            parts = gguf.quants.quantize(values, quantised)
            writer.add_tensor(its_name, parts, raw_dtype=quantised)
        else:
            writer.add_tensor(its_name, values)
    more(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, kind: str) -> None:
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    types = [gguf.TokenType.CONTROL if t in _SPECIAL else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(kind)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_pad_token_id(1)


def _laid_out(kind: str, name: str, values: np.ndarray, config: object) -> np.ndarray:
    # llama.cpp turns pairs of neighbours where transformers turns the halves of a head.
    heads = {
        "q_proj.weight": config.num_attention_heads,  # type: ignore[attr-defined]
        "k_proj.weight": config.num_key_value_heads,  # type: ignore[attr-defined]
    }
    for end, count in heads.items():
        if kind == "llama" and name.endswith(end):
            shape = (count, 2, values.shape[0] // count // 2, *values.shape[1:])
            return np.ascontiguousarray(values.reshape(shape).swapaxes(1, 2).reshape(values.shape))
    return values
