"""A folder with a model whose linear layers and embeddings are integers of 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel

from fedllm.compression.int8 import to_int8
from fedllm.errors import CheckpointError
from fedllm.models.architecture import attention, options
from fedllm.models.checkpoints import quietly
from fedllm.models.contents import check_contents, read_object, reading

INT8 = "fedllm.int8.v1"
ABOUT, WEIGHTS = "int8.json", "int8.safetensors"
_AUTO = ("AutoModel", "AutoModelForCausalLM")
_REMEDY = "copy the folder again, or repeat fedllm compress quantize"


def is_int8(folder: Path) -> bool:
    """Tell whether a folder holds such a model."""
    return (folder / ABOUT).exists()


def load_int8(folder: Path) -> tuple[PreTrainedModel, str]:
    """Load the Transformer, and return it with the name of its list of blocks.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or of another model than the others.
    """
    check_contents(folder, weights=False)
    told = read_object(folder / ABOUT)
    auto, layers = told.get("auto"), told.get("layers")
    if told.get("label") != INT8 or auto not in _AUTO or not isinstance(layers, str):
        raise CheckpointError(f"{folder / ABOUT} is no description that fedllm wrote", _REMEDY)
    with reading(f"the model in {folder} cannot be loaded", _REMEDY), quietly():
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        how = attention(config) if auto == "AutoModelForCausalLM" else options(config)
        of_class: Any = getattr(transformers, str(auto))
        model: PreTrainedModel = of_class.from_config(config, trust_remote_code=False, **how)
        to_int8(model)
        tensors = load_file(folder / WEIGHTS)
        held = {values.data_ptr() for name, values in model.state_dict().items() if name in tensors}
        found = model.load_state_dict(tensors, strict=False)
        # A second name of a tensor is not stored; it lies where the first one's does.
        lacking = [
            name for name in found.missing_keys if model.state_dict()[name].data_ptr() not in held
        ]
        model.base_model.get_submodule(layers)
    if lacking or found.unexpected_keys:
        raise CheckpointError(f"{folder / WEIGHTS} is of another model than config.json", _REMEDY)
    return model.eval().requires_grad_(False), layers
