"""Tiny random Transformers of every architecture that is proven to work, for tests.

Each has what makes its kind special: grouped queries, windows shorter than the texts, layers
without positions, scaled or cut-off logits, embeddings narrower than the states.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

FULL, NEAR = "full_attention", "sliding_attention"
WORDS = (
    "card",
    "cash",
    "bank",
    "loan",
    "rate",
    "fee",
    "pay",
    "send",
    "lost",
    "open",
    "close",
    "my",
)
SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
LAYERS = 3

_ROTARY = {"rope_type": "default", "rope_theta": 100.0}
_SIZE = {
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_GROUPED = _SIZE | {"num_key_value_heads": 2, "rope_parameters": _ROTARY}


@dataclass(frozen=True)
class Tiny:
    """A tiny configuration of one type of model.

    Attributes
    ----------
    values : dict
        Of its configuration.
    targets : tuple of str
        Its query and value projections.
    layers : str
        Its list of layers.
    shared_input : bool
        Whether an adapted layer is also given what all records share, so that a gradient has
        rows of records only where each is a piece of its own.
    """

    values: dict[str, Any]
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    layers: str = "layers"
    shared_input: bool = False


DECODERS = {
    "llama": Tiny(_GROUPED | {"tie_word_embeddings": True}),
    "qwen2": Tiny(
        _GROUPED
        | {"use_sliding_window": True, "sliding_window": 3, "layer_types": [FULL, NEAR, FULL]}
    ),
    "qwen3": Tiny(_GROUPED | {"head_dim": 6, "tie_word_embeddings": True}),
    "gemma2": Tiny(
        _GROUPED
        | {"head_dim": 4, "sliding_window": 3, "query_pre_attn_scalar": 7, "layer_types": None}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    ),
    "gemma3_text": Tiny(
        _GROUPED
        | {"head_dim": 4, "sliding_window": 3, "query_pre_attn_scalar": 7}
        | {"layer_types": [NEAR, FULL, NEAR], "final_logit_softcapping": 3.0}
        | {"rope_parameters": {NEAR: _ROTARY, FULL: _ROTARY | {"rope_theta": 9000.0}}}
    ),
    "phi3": Tiny(_GROUPED | {"sliding_window": 3}, ("qkv_proj",)),
    "mistral": Tiny(_GROUPED | {"sliding_window": 3}),
    "mixtral": Tiny(
        _GROUPED | {"sliding_window": 3, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "smollm3": Tiny(
        _GROUPED
        | {"no_rope_layers": [1, 0, 1], "use_sliding_window": True, "sliding_window": 3}
        | {"layer_types": [NEAR, FULL, NEAR]}
    ),
    "granite": Tiny(
        _GROUPED
        | {"embedding_multiplier": 2.0, "attention_multiplier": 0.3}
        | {"residual_multiplier": 0.5, "logits_scaling": 3.0}
    ),
    "olmo2": Tiny(_GROUPED),
    "cohere2": Tiny(_GROUPED | {"logit_scale": 0.5, "sliding_window": 3}),
    "gpt2": Tiny(
        {"n_embd": 16, "n_head": 4, "n_layer": LAYERS, "n_positions": 64}, ("c_attn",), "h"
    ),
    "gpt_neo": Tiny(
        _SIZE
        | {"num_heads": 4, "num_layers": LAYERS, "window_size": 3}
        | {"attention_types": [[["local", "global", "local"], 1]]},
        layers="h",
    ),
    "gpt_neox": Tiny(_SIZE | {"rope_parameters": _ROTARY}, ("query_key_value",)),
    "opt": Tiny(
        {"hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": LAYERS, "ffn_dim": 24}
        | {"word_embed_proj_dim": 8, "max_position_embeddings": 64},
        layers="decoder.layers",
    ),
    "bloom": Tiny({"hidden_size": 16, "n_head": 4, "n_layer": LAYERS}, ("query_key_value",), "h"),
}

_QUERY_VALUE, _ENCODER = ("query", "value"), "encoder.layer"
ENCODERS = {
    "bert": Tiny(_SIZE, _QUERY_VALUE, _ENCODER),
    "roberta": Tiny(_SIZE, _QUERY_VALUE, _ENCODER),
    "xlm-roberta": Tiny(_SIZE, _QUERY_VALUE, _ENCODER),
    "camembert": Tiny(_SIZE, _QUERY_VALUE, _ENCODER),
    "distilbert": Tiny(
        {"dim": 16, "n_heads": 4, "n_layers": LAYERS, "hidden_dim": 24}
        | {"max_position_embeddings": 64},
        ("q_lin", "v_lin"),
        "transformer.layer",
    ),
    "electra": Tiny(_SIZE | {"embedding_size": 8}, _QUERY_VALUE, _ENCODER),
    "deberta-v2": Tiny(
        _SIZE
        | {"relative_attention": True, "position_buckets": 4, "max_relative_positions": -1}
        | {"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"]}
        | {"position_biased_input": False, "type_vocab_size": 0, "conv_kernel_size": 3},
        ("query_proj", "value_proj"),
        _ENCODER,
        shared_input=True,
    ),
    "modernbert": Tiny(
        _SIZE
        | {"local_attention": 6, "layer_types": [FULL, NEAR, FULL]}
        | {"rope_parameters": {NEAR: _ROTARY, FULL: _ROTARY | {"rope_theta": 9000.0}}},
        ("Wqkv",),
    ),
    "eurobert": Tiny(_GROUPED),
}
ALL = DECODERS | ENCODERS

DECODER_LAYERS = 2
_T5 = {
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_heads": 4,
    "num_layers": LAYERS,
    "num_decoder_layers": DECODER_LAYERS,
    # Fewer than a text's tokens have distances.
    "relative_attention_num_buckets": 6,
    "relative_attention_max_distance": 8,
    "decoder_start_token_id": 0,
}
_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_BART = {
    "d_model": 16,
    "encoder_layers": LAYERS,
    "decoder_layers": DECODER_LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 64,
    "decoder_start_token_id": 3,
}
# The first is T5 as it was; Flan-T5 and T5 1.1 are of the same type.
ENCODER_DECODERS = {
    "t5": Tiny(_T5, ("q", "v"), "decoder.block"),
    "t5-gated": Tiny(_T5 | _GATED, ("q", "v"), "decoder.block"),
    "mt5": Tiny(_T5 | _GATED, ("q", "v"), "decoder.block"),
    "umt5": Tiny(_T5 | _GATED, ("q", "v"), "decoder.block"),
    "bart": Tiny(_BART, layers="decoder.layers"),
    "pegasus": Tiny(_BART | {"decoder_start_token_id": 0}, layers="decoder.layers"),
    "marian": Tiny(_BART | {"decoder_start_token_id": 0}, layers="decoder.layers"),
}
# Begins responses with their last token.
OTHER_ENCODER_DECODERS = {"mbart": Tiny(_BART, layers="decoder.layers")}


def save_tokenizer(folder: Path, **settings: Any) -> int:
    """Write a tokenizer of whole words, and return how many tokens it has."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        **settings,
    ).save_pretrained(folder)
    return len(vocabulary)


def save_model(kind: str, folder: Path, values: dict[str, Any], *, encoder: bool) -> None:
    """Write a random model, without its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    pair = kind in ENCODER_DECODERS | OTHER_ENCODER_DECODERS
    auto = AutoModelForSeq2SeqLM if pair else AutoModelForCausalLM
    kind = kind.partition("-gated")[0]
    config = AutoConfig.for_model(kind, **values, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = (AutoModel if encoder else auto).from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                # Larger than the usual start, so that layers and gradients differ clearly.
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def save_tiny(kind: str, folder: Path, **changes: Any) -> Path:
    """Write a tiny checkpoint of an architecture of the table, and return its folder."""
    tokens = save_tokenizer(folder)
    tiny = (ALL | ENCODER_DECODERS | OTHER_ENCODER_DECODERS)[kind]
    values = tiny.values | changes | {"vocab_size": tokens}
    save_model(kind, folder, values, encoder=kind in ENCODERS)
    return folder
