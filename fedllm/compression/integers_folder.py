"""A folder with a model whose linear layers and embeddings are integers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from fedllm.compression.integers import INTEGERS, to_integers
from fedllm.errors import CheckpointError
from fedllm.models.architecture import attention, options
from fedllm.models.checkpoints import quietly, read_config
from fedllm.models.contents import check_contents, read_object, reading

LABEL = "fedllm.integers.v1"
ABOUT, WEIGHTS = "integers.json", "integers.safetensors"
_AUTO = ("AutoModel", "AutoModelForCausalLM")
_REMEDY = "copy the folder again, or repeat fedllm compress quantize"


def is_of_integers(folder: Path) -> bool:
    """Tell whether a folder holds such a model."""
    return (folder / ABOUT).exists()


def load_integers(folder: Path) -> tuple[PreTrainedModel, str]:
    """Load the Transformer, and return it with the name of its list of blocks.

    What is no integer is float32. It is portable still: `fedllm.compression.integers.quicken`
    lays it out for this processor.

    Raises
    ------
    CheckpointError
        If a file is missing, damaged, or of another model than the others, or the configuration
        is one that `read_config` refuses.
    """
    check_contents(folder, weights=False)
    told = read_object(folder / ABOUT)
    auto, layers = told.get("auto"), told.get("layers")
    held = next((one for one in INTEGERS if one == told.get("held")), None)
    right = told.get("label") == LABEL and held is not None and auto in _AUTO
    if not right or held is None or not isinstance(layers, str):
        raise CheckpointError(f"{folder / ABOUT} is no description that fedllm wrote", _REMEDY)
    with reading(f"the model in {folder} cannot be loaded", _REMEDY), quietly():
        # What a checkpoint's is refused for, this one is too.
        config, architecture = read_config(folder, integers=True)
        how = attention(config) if auto == "AutoModelForCausalLM" else options(config)
        of_class: Any = getattr(transformers, str(auto))
        # Numbers that nobody looks at cost time, and memory as soon as they are written.
        with no_init_weights():
            model: PreTrainedModel = of_class.from_config(
                config, dtype=torch.float32, trust_remote_code=False, **how
            )
        model.tie_weights()
        to_integers(model, held, empty=True)
        tensors = load_file(folder / WEIGHTS)
        state = model.state_dict()
        wrong = [
            name
            for name, values in tensors.items()
            if name in state and state[name].dtype != values.dtype
        ]
        at = {values.data_ptr() for name, values in state.items() if name in tensors}
        found = model.load_state_dict(tensors, strict=False)
        # A second name of a tensor is not stored; it lies where the first one's does.
        lacking = [name for name in found.missing_keys if state[name].data_ptr() not in at]
    if lacking or wrong or layers != architecture.layers or found.unexpected_keys:
        raise CheckpointError(f"{folder / WEIGHTS} is of another model than config.json", _REMEDY)
    return model.eval().requires_grad_(False), layers
