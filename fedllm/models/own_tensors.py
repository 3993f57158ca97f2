"""Tensors of the base model itself that a run trains, instead of adapters put beside them.

BitFit (Ben Zaken et al. 2022) trains biases and norms, a few thousand values; ``"layers"`` the
last layers whole.
"""

from __future__ import annotations

from transformers import PreTrainedModel

from fedllm.config import LoraSection
from fedllm.errors import ConfigError
from fedllm.models.architecture import Architecture
from fedllm.models.lora import adapted_layers

# Softmax takes off again what the same vector at all keys adds to a query's products, so these
# get no gradient but rounding: under noise they would be noise alone. A layer that makes query,
# key and value together has one bias for all three, which is trained whole.
_NO_EFFECT = tuple(f".{name}.bias" for name in ("key", "k", "k_proj", "k_lin", "key_proj"))


def train_own_tensors(
    backbone: PreTrainedModel, architecture: Architecture, section: LoraSection
) -> None:
    """Let the run's tensors of the adapted layers need a gradient, and leave the others frozen.

    Parameters
    ----------
    backbone : PreTrainedModel
        With all tensors frozen, float32.

    Raises
    ------
    ConfigError
        If ``lora.last_layers`` is more than the model has, or its layers have no biases or norms.
    """
    names = own_tensors(backbone, architecture, section)
    if not names:
        raise ConfigError(
            "lora.method = 'bitfit': the adapted layers have neither biases nor norms",
            "take another lora.method",
        )
    for name in names:
        backbone.get_parameter(name).requires_grad_(True)


def own_tensors(
    backbone: PreTrainedModel, architecture: Architecture, section: LoraSection
) -> list[str]:
    """Return the names of what ``lora.method`` trains of the base itself, in the model's order.

    Biases of keys that have a layer of their own are left out, for attention does not depend on
    them but where positions turn keys.
    """
    within = tuple(f"{layer}." for layer in adapted_layers(backbone, architecture, section))
    return [
        name
        for name, parameter in backbone.named_parameters()
        if name.startswith(within)
        and (parameter.dim() == 1 or section.kind == "layers")
        and not name.endswith(_NO_EFFECT)
    ]
