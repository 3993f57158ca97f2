"""Where a run's adapter begins, where more than its seed decides that."""

from __future__ import annotations

from fedllm.config import RunConfig
from fedllm.errors import ConfigError
from fedllm.models.curvature import even_out_cores
from fedllm.models.explained import explain_inputs
from fedllm.models.shared import SharedModel
from fedllm.tasks.public_texts import Tokens, read_texts

# What the texts decide, by method.
DECIDED_BY_TEXTS = {"eva": ("A",), "core": ("A", "B")}
# Public texts that are looked at.
_TEXTS = 64


def begin(config: RunConfig, model: SharedModel) -> None:
    """Let an untrained model begin where the run does, in place; most do already.

    For whoever trains from the beginning: a run's coordinator, and audits of it.

    Raises
    ------
    ConfigError
        If public texts are needed and nobody named them.
    DataError
        If these cannot be read, or say too little.
    """
    if model.method not in DECIDED_BY_TEXTS:
        return
    # A process keeps the model of its last run.
    model.set_adapter(model.initial)
    if model.method == "eva":
        explain_inputs(model, _public_texts(config, model))
    elif model.method == "core" and config.lora.public_texts is not None:
        even_out_cores(model, _public_texts(config, model), config.seed)
    else:
        return
    model.begin_with(model.tensors.only(*DECIDED_BY_TEXTS[model.method]))


def _public_texts(config: RunConfig, model: SharedModel) -> list[Tokens]:
    """Return the texts that decide: evenly drawn from the file."""
    if config.lora.public_texts is None:
        raise ConfigError(
            "lora.method = 'eva' needs public texts",
            "name a file of them as lora.public_texts, or take lora.method = 'ffa_orthonormal'",
        )
    texts = read_texts(config.lora.public_texts, "text", model.tokenizer, config.model.max_length)
    return texts[:: max(1, len(texts) // _TEXTS)][:_TEXTS]
