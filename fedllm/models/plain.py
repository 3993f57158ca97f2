"""A base model by itself, to write with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fedllm.errors import ConfigError
from fedllm.models import checkpoints
from fedllm.models.device import chosen_device, put_on


@dataclass(frozen=True, eq=False)
class PlainModel:
    """A checkpoint with its own head, and its tokenizer."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def load_plain_model(location: str, device: str | None = None) -> PlainModel:
    """Load a base model that writes text: in float32, on a GPU in bfloat16.

    Parameters
    ----------
    location : str
        As in ``model.path``.
    device : str, optional
        Where it computes; see `chosen_device`.

    Raises
    ------
    ConfigError
        If it is an encoder, which writes nothing, or this machine lacks the device.
    CheckpointError
        If the checkpoint is missing, damaged or not supported.
    """
    place = chosen_device(device, "--device")
    folder: Path = checkpoints.checkpoint_folder(location)
    config, architecture = checkpoints.read_config(folder)
    if not architecture.causal:
        raise ConfigError(
            f"the model in {folder} is an encoder ({config.model_type}), which writes no text",
            "give a generative model, or the folder of a run",
        )
    dtype = torch.float32 if place.type == "cpu" else torch.bfloat16
    network = checkpoints.load_weights(folder, config, architecture, dtype, language_model=True)
    return PlainModel(
        put_on(network, place).eval(), checkpoints.load_tokenizer(folder, config.vocab_size)
    )
