"""A core's basis of public texts: in it gradients have one size and lean on no few directions.

The gradient of a layer's weights is, token by token, the outer product of the loss's slope by the
layer's output and the layer's input. Inputs of a language model lie mostly along one or two
directions, and so does what comes out of any A that does not know them: a step that suits these is
far too small for the rest, and noise that hides all is large beside the rest. A is made of random
combinations of the inputs after the root of their covariance was divided out, B likewise of the
slopes, so that on such texts every value of a core has gradients of the same mean square, which is
what Kronecker-factored curvature (Martens and Grosse 2015) does to a step. Random combinations
reach all directions.

The texts decide in which basis sites train, and nothing noises them: they must be public.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fedllm.errors import ConfigError, DataError
from fedllm.models.lora import lora_layers
from fedllm.models.readout import TokenModel
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

# Added to each variance, in mean variances: a direction without any would get no bound.
_DAMPING = 0.1


@dataclass
class _Seen:
    """Sums of products of what enters a layer, and of the loss's slopes by what leaves it."""

    inputs: Tensor
    slopes: Tensor
    tokens: int = 0


def even_out_cores(model: SharedModel, texts: Sequence[Sequence[int]], seed: int) -> None:
    """Put the basis that public texts show into the A and B of every core, in place.

    Parameters
    ----------
    model : SharedModel
        A decoder, with untrained cores.
    texts : sequence of sequence of int
        Tokens of each text; looked at one by one, so that there is no padding.
    seed : int
        Of the random combinations.

    Raises
    ------
    ConfigError
        If the model does not say which token comes next, so that texts alone have no loss.
    DataError
        If the texts have no loss that changes with some layer, or a model of no numbers has.
    """
    if not isinstance(model.module, TokenModel) or model.module.backbone.config.is_encoder_decoder:
        raise ConfigError(
            "lora.public_texts with method = 'core' needs a task of a decoder's next token: texts "
            "without labels have no other loss",
            "leave lora.public_texts out: the basis is of the base's own weights then",
        )
    layers = lora_layers(model.module)
    seen = _looked(model, layers, texts)
    for name, of_layer in seen.items():
        _require_told(name, of_layer)
    # Then the gradient of such a text's mean loss has a norm of about one, if tokens have
    # little in common.
    tokens = sum(s.tokens for s in seen.values()) / len(seen) / len(texts)
    strength = sqrt(tokens / model.manifest.length)
    for name, layer in layers.items():
        into = cast(nn.Linear, layer.lora_A["default"])
        out = cast(nn.Linear, layer.lora_B["default"])
        stream = RandomStream.seeded(seed, "even core", name)
        a = evened(seen[name].inputs / seen[name].tokens, into.out_features, stream)
        b = evened(seen[name].slopes / seen[name].tokens, into.out_features, stream)
        with torch.no_grad():
            into.weight.copy_(a.float())
            out.weight.copy_((strength * b.T).float())


def _require_told(name: str, seen: _Seen) -> None:
    """Refuse texts that say nothing of a layer: of nothing its basis would be no number.

    In texts of two tokens, attention has nothing to choose from where a token counts.
    """
    found = (seen.inputs, seen.slopes)
    if not all(bool(one.isfinite().all()) for one in found):
        raise DataError(
            f"along the public texts layer {name} gives no numbers",
            "check the base model: it may be damaged, or overflow in model.precision",
        )
    if not all(bool(one.any()) for one in found):
        raise DataError(
            f"the public texts have no loss that changes with layer {name}",
            "give lora.public_texts more and longer texts",
        )


def evened(covariance: Tensor, rank: int, stream: RandomStream) -> Tensor:
    """Return random rows (rank, W), float64, whose outputs have mean square one and no correlation.

    But for the damping; over all rows the mean square is one exactly.

    Parameters
    ----------
    covariance : Tensor
        (W, W), uncentred, of what the rows are multiplied with.
    rank : int
        How many rows.
    """
    width = len(covariance)
    energy, vectors = torch.linalg.eigh(covariance.double())
    energy = energy.clamp(min=0)
    turned = torch.from_numpy(stream.normal(rank * width)).reshape(rank, width)
    if rank <= width:
        turned = torch.linalg.qr(turned.T).Q.T
    rows = turned / (energy + _DAMPING * energy.mean()).sqrt()
    rows = rows / (rows.square() * energy).sum(1).mean().sqrt()
    return rows @ vectors.T


def _looked(
    model: SharedModel, layers: dict[str, LoraLayer], texts: Sequence[Sequence[int]]
) -> dict[str, _Seen]:
    """Return what the layers see along the texts, and what the loss of these says of them."""
    seen: dict[str, _Seen] = {}
    module = cast(Any, model.module)
    with ExitStack() as hooks:
        for name, layer in layers.items():
            into, out = (cast(nn.Linear, part["default"]) for part in (layer.lora_A, layer.lora_B))
            kept = seen[name] = _Seen(
                torch.zeros(into.in_features, into.in_features, dtype=torch.float64),
                torch.zeros(out.out_features, out.out_features, dtype=torch.float64),
            )

            def look(
                _: nn.Module, given: tuple[Any, ...], output: Tensor, kept: _Seen = kept
            ) -> None:
                states = given[0].detach().flatten(0, -2).float()
                kept.inputs += (states.T @ states).cpu()
                kept.tokens += len(states)

                def slope(values: Tensor) -> None:
                    found = values.detach().flatten(0, -2).float()
                    kept.slopes += (found.T @ found).cpu()

                output.register_hook(slope)

            handle = cast(nn.Module, layer).register_forward_hook(look)
            hooks.callback(handle.remove)
        for text in texts:
            ids = torch.tensor([list(text)])
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            losses, _ = module.token_losses(model.moved(batch))
            torch.autograd.grad(losses.sum(), model.trained)
    return seen
