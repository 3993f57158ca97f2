"""A run's model as one plain Transformer with its head: what is made smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedModel

from fedllm.compression.distilling import Module
from fedllm.errors import ConfigError
from fedllm.exporting.effect import Effect
from fedllm.exporting.merged import merged_base
from fedllm.exporting.probe import make_probe
from fedllm.exporting.released import Released, read_released
from fedllm.models.architecture import Architecture
from fedllm.models.checkpoints import read_config
from fedllm.models.encoder_decoder import PromptedModel
from fedllm.models.shared import SharedModel


@dataclass(frozen=True, eq=False)
class Whole:
    """A model without adapters, all of which may be changed.

    Attributes
    ----------
    released : Released
        Its model holds what was trained in plain weights, in float32.
    architecture : Architecture
        Of its base.
    effect : Effect
        What training did, as the run's own model told it before its adapter was added.
    """

    released: Released
    architecture: Architecture
    effect: Effect

    @property
    def model(self) -> SharedModel:
        """Transformer, head and tokenizer."""
        return self.released.model

    @property
    def module(self) -> Module:
        """Maps a batch to logits."""
        return cast(Module, self.model.module)

    @property
    def backbone(self) -> PreTrainedModel:
        """The Transformer, with its own head where the run has none."""
        return self.module.backbone

    @property
    def blocks(self) -> list[str]:
        """Names of its blocks in the base."""
        return self.architecture.layer_names(self.backbone.base_model)

    def reshaped(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the configuration has otherwise than before."""
        now = self.backbone.config.to_dict()
        return {key: value for key, value in now.items() if before.get(key) != value}

    def with_module(self, module: Module) -> Whole:
        """Return the same with another Transformer or head."""
        return replace(self, released=replace(self.released, model=_shared(self.model, module)))


def open_whole(run: Path, base: str | None = None) -> Whole:
    """Load a finished run's model, the adapter added into its weights.

    Parameters
    ----------
    base : str, optional
        Of the base model, where it was moved.

    Raises
    ------
    ConfigError
        If the model is an encoder-decoder.
    TrainingError
        If the run's adapter changes nothing.
    FedllmError
        As `read_released`.
    """
    released = read_released(run, base)
    module = released.model.module
    if isinstance(module, PromptedModel):
        raise ConfigError(
            "encoder-decoders are not made smaller here", "use fedllm export --format merged"
        )
    # In the merged model nobody sees any more what is the base's.
    effect = Effect.of(released, make_probe(released))
    effect.require_any()
    merged_base(released)
    # Nothing is frozen any more: what a block gives may change.
    module.stack.first = 0
    _, architecture = read_config(released.base)
    whole = replace(released, model=_shared(released.model, module))
    return Whole(whole, architecture, effect)


def _shared(model: SharedModel, module: Module) -> SharedModel:
    return SharedModel(
        module=module.eval(),
        tokenizer=model.tokenizer,
        task=model.task,
        labels=model.labels,
        fingerprint=model.fingerprint,
        files_fingerprint=model.files_fingerprint,
        tagging=model.tagging,
        peft=None,
    )
