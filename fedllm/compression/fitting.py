"""Whether the tensors of a folder are those of the model that its config.json describes."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from fedllm.errors import CheckpointError
from fedllm.models.architecture import skeleton
from fedllm.models.checkpoints import read_config
from fedllm.models.fit import IDLE

Shape = tuple[int, ...]

# Classes with a head that an export may be of, or what it was made of.
_AUTOS = (
    "AutoModelForCausalLM",
    "AutoModelForMaskedLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
)
_REMEDY = "use the config.json that came with the weights, or make the folder once more"


def check_fits(folder: Path, shapes: Mapping[str, Shape]) -> None:
    """Compare names and shapes of tensors with the model's, for which no memory is taken.

    A head or a pooler that the model does not use may be left over, a part of its layers not. What
    a model lacks is told where it is loaded.

    Parameters
    ----------
    folder : Path
        With the ``config.json``.
    shapes : mapping of str to tuple of int
        Of the tensors that the folder holds, as they are when they are read.

    Raises
    ------
    CheckpointError
        If ``config.json`` is missing or damaged, or of a model that is not supported; if a tensor
        has another shape than in the model, or the model has none of its name. Names both.
    """
    config, architecture = read_config(folder, integers=True)
    wanted, whole = _shapes(config)
    # Of some kinds transformers puts tensors of a file together, under other names.
    as_in_files = get_checkpoint_conversion_mapping(str(config.model_type)) is None
    left = 0
    for name, shape in sorted(shapes.items()):
        if name in wanted and wanted[name] != shape:
            raise CheckpointError(
                f"{folder}: the tensor {name} has the shape {shape}, and in the model that "
                f"config.json describes it has {wanted[name]}",
                _REMEDY,
            )
        if name in wanted or name.endswith(IDLE):
            continue
        inside = any(f".{layers}." in f".{name}" for layers in architecture.lists)
        if inside and as_in_files:
            raise CheckpointError(
                f"{folder}: the tensor {name!r:.200} has the shape {shape}, and the model that "
                "config.json describes has none of that name",
                _REMEDY,
            )
        left += prod(shape)
        if left > whole:
            raise CheckpointError(
                f"{folder}: the tensor {name!r:.200} has the shape {shape}: with it, tensors that "
                f"config.json's model does not have hold {left} numbers, and the model {whole}",
                _REMEDY,
            )


def _shapes(config: PretrainedConfig) -> tuple[dict[str, Shape], int]:
    """Return the shapes of all tensors, by each name that files have, and the number of weights."""
    base = skeleton(config)
    own = {name: tuple(values.shape) for name, values in base.state_dict().items()}
    found = own | {f"{base.base_model_prefix}.{name}": shape for name, shape in own.items()}
    if (of_class := _class_with_head(config)) is not None:
        with torch.device("meta"):
            model = of_class(config)
        found |= {name: tuple(values.shape) for name, values in model.state_dict().items()}
    return found, sum(values.numel() for values in base.parameters())


def _class_with_head(config: PretrainedConfig) -> Any | None:
    """Return the class that the configuration names, if it is one of transformers' for its kind."""
    for auto in _AUTOS:
        found = getattr(transformers, auto)._model_mapping.get(type(config), None)
        for of_class in found if isinstance(found, tuple) else (found,):
            if of_class is not None and of_class.__name__ in (config.architectures or ()):
                return of_class
    return None
