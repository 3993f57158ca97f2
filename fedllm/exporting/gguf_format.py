"""A GGUF file as llama.cpp runs it, read back by transformers before it stands.

llama.cpp knows an architecture by its name, and much of it by heart: settings that a file has no
key for are taken to be the usual ones. A model that has others is refused, not changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedllm.errors import CheckpointError, ConfigError, TrainingError
from fedllm.exporting.effect import Effect
from fedllm.exporting.gguf_tokens import GgufTokens, gguf_tokens
from fedllm.exporting.kinds import kind_of
from fedllm.exporting.llama_cpp_script import llama_cpp_script
from fedllm.exporting.merged import compare, copy_beside, kept_in, merged_base
from fedllm.exporting.onnx_format import require_kind
from fedllm.exporting.probe import language_answers
from fedllm.exporting.released import Released, quantized_notes
from fedllm.exporting.written import Settings, Written
from fedllm.extras import remedy_of
from fedllm.models import checkpoints
from fedllm.models.importing import read_gguf, read_model

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE = "model.gguf"
_NAMES = {"llama": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3"}
KINDS = tuple(_NAMES)
# What llama.cpp takes for granted, by the key of config.json.
_USUAL: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen2": {"hidden_act": "silu", "use_sliding_window": False},
    "gemma3_text": {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
}
_GEMMA_PATTERN, _GEMMA_LOCAL_THETA, _GEMMA_HEAD = 6, 10000.0, 256
_TRIED_TEXTS = (
    "Hello, world! It's 12:45 on the 3rd.",
    "  two  spaces,\n\n\ta tab; naïve Zürich 你好 €2.50",
)
_OTHERWISE = "take --format merged, which keeps all settings"


def write_gguf(released: Released, folder: Path, settings: Settings) -> Written:
    """Write a GGUF file into an empty folder.

    Raises
    ------
    ConfigError
        If the run trained a head, the architecture or its settings have no GGUF form here, the
        tokenizer none that llama.cpp knows, or the package gguf is missing.
    TrainingError
        If it is read back as another model or tokenizer.
    """
    if kind_of(released.model).head is not None:
        raise ConfigError(
            "--format gguf has no place for a head that a run trained",
            "take --format onnx or merged, which hold it",
        )
    require_kind(released, KINDS, "gguf")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise ConfigError("--format gguf needs the package gguf", remedy_of("gguf")) from None
    dtype = settings.dtype or kept_in(released.base)
    effect = settings.effect or Effect.of(released, settings.probe, settings.wanted)
    with torch.no_grad():
        model: Any = merged_base(released)
        _require_usual(model.config)
        tokens = gguf_tokens(
            released.model.tokenizer, released.base, len(model.get_input_embeddings().weight)
        )
        _write(folder / FILE, released, model, tokens, dtype)
    copy_beside(released.base, folder, tokenizer=False)
    found = _read_back(released, folder / FILE, settings)
    largest = compare(dtype, found, settings, effect)
    return Written(
        library="gguf",
        what=f"A GGUF file for llama.cpp, weights in {dtype}.",
        largest=largest,
        script=llama_cpp_script(released.model, released.run.config),
        notes=(
            "transformers read the file back and gave the run's own logits; llama.cpp did not run "
            "when it was made.",
            *quantized_notes(released),
        ),
    )


def _require_usual(config: Any) -> None:
    """Refuse settings that a GGUF file does not say and llama.cpp would take to be others."""
    kind = config.model_type
    wrong = {k: getattr(config, k, v) for k, v in _USUAL[kind].items()}
    wrong = {k: v for k, v in wrong.items() if v != _USUAL[kind][k]}
    ropes = _ropes(config)
    if any(rope.get("rope_type", "default") != "default" for rope in ropes.values()):
        wrong["rope_type"] = "not default"
    if kind == "gemma3_text":
        pattern = [
            "sliding_attention" if (layer + 1) % _GEMMA_PATTERN else "full_attention"
            for layer in range(config.num_hidden_layers)
        ]
        if list(config.layer_types) != pattern:
            wrong["layer_types"] = "not five sliding and one full"
        if ropes["sliding_attention"]["rope_theta"] != _GEMMA_LOCAL_THETA:
            wrong["rope_theta of sliding_attention"] = ropes["sliding_attention"]["rope_theta"]
        for key in ("query_pre_attn_scalar", "head_dim"):
            if getattr(config, key) != _GEMMA_HEAD:
                wrong[key] = getattr(config, key)
    elif _head_size(config) * config.num_attention_heads != config.hidden_size:
        wrong["head_dim"] = _head_size(config)
    if wrong:
        shown = ", ".join(f"{key} = {value!r:.40}" for key, value in wrong.items())
        raise ConfigError(f"--format gguf cannot say what this base model has: {shown}", _OTHERWISE)


def _ropes(config: Any) -> dict[str, dict[str, Any]]:
    told = config.rope_parameters
    return told if "full_attention" in told else {"full_attention": told}


def _head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _write(path: Path, released: Released, model: Any, tokens: GgufTokens, dtype: str) -> None:
    import gguf

    config = model.config
    name = _NAMES[config.model_type]
    writer = gguf.GGUFWriter(path, name)
    writer.add_name(released.run.config.name)
    _say_sizes(writer, config)
    tokens.write(writer)
    layers = config.num_hidden_layers
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, name.upper()), layers)
    for its_name, values in model.state_dict().items():
        if its_name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        found = names.get_name(its_name, (".weight", ".bias"))
        if found is None:
            raise ConfigError(f"--format gguf has no name for {its_name}", _OTHERWISE)
        _add(writer, found, _laid_out(config, its_name, values), dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _say_sizes(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(_ropes(config)["full_attention"]["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gemma3_text":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        writer.add_sliding_window(config.sliding_window)
    elif config.model_type == "llama":
        writer.add_rope_dimension_count(_head_size(config))


def _laid_out(config: Any, name: str, values: Tensor) -> Tensor:
    values = values.float()
    if config.model_type == "gemma3_text" and name.endswith("norm.weight"):
        # transformers adds the one when it computes.
        return values + 1.0
    heads = {
        "q_proj.weight": config.num_attention_heads,
        "k_proj.weight": config.num_key_value_heads,
    }
    for end, count in heads.items():
        if config.model_type == "llama" and name.endswith(end):
            # llama.cpp turns neighbours by an angle where transformers turns halves of a head.
            halves = values.reshape(count, 2, len(values) // count // 2, values.shape[1])
            return halves.transpose(1, 2).reshape(values.shape)
    return values


def _add(writer: GGUFWriter, name: str, values: Tensor, dtype: str) -> None:
    import gguf

    numbers = values.contiguous().numpy()
    # llama.cpp wants norms and biases in float32.
    if values.dim() == 1 or dtype == "float32":
        writer.add_tensor(name, numbers)
        return
    kind = gguf.GGMLQuantizationType["BF16" if dtype == "bfloat16" else "F16"]
    writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)


def _read_back(released: Released, path: Path, settings: Settings) -> Tensor:
    """Return the answers of what transformers makes of a file; refuse another tokenizer."""
    with checkpoints.quietly():
        try:
            model, tokenizer = read_model(read_gguf(path), torch.float32)
        except CheckpointError as error:
            raise TrainingError(
                f"the GGUF file is not read back as it was written: {error.message}", _OTHERWISE
            ) from None
    # Of the vocabulary's own words, too, of which all merges are tried in time.
    drawn = [released.model.tokenizer.decode(row) for row in settings.probe.ids]
    for text in (*_TRIED_TEXTS, *drawn):
        own = released.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer(text, add_special_tokens=False)["input_ids"] != own:
            raise TrainingError(
                "the GGUF file's tokenizer cuts texts in other places than the base model's",
                "take --format merged, which keeps the tokenizer as it is",
            )
    return language_answers(released, model, settings.probe)
