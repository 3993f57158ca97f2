"""Directions in which a layer's inputs lie on public text, as the rows of a frozen A.

The gradient of a matrix is a sum of outer products with the layer's inputs, and no other A of the
same rank keeps more of these than one whose rows are their first directions (EVA, Paischer et al.
2024). Each row is divided by the root mean square of what comes out of it: otherwise the first
would be many times as strong as the others, and the layers would differ as much, and one learning
rate could not be right for all.

The texts decide what sites train in, and nothing noises them: they must be public, like the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fedllm.errors import DataError
from fedllm.models.lora import lora_layers
from fedllm.models.shared import SharedModel

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

# Inputs of a layer that are looked at, of all texts together: more change the directions little.
_STATES = 2048
# A direction with less than this part of the whole is rounding.
_LEAST = 1e-9


@torch.no_grad()
def explain_inputs(model: SharedModel, texts: Sequence[Sequence[int]]) -> None:
    """Put the directions of public texts into the A of every adapted layer, in place.

    Parameters
    ----------
    model : SharedModel
        With an untrained adapter.
    texts : sequence of sequence of int
        Tokens of each text; looked at one by one, so that there is no padding.

    Raises
    ------
    DataError
        If the texts show fewer directions than the rank.
    """
    layers = lora_layers(model.module)
    seen = _inputs(model, layers, texts)
    for name, layer in layers.items():
        into = cast(nn.Linear, layer.lora_A["default"])
        rows = directions(seen[name], into.out_features)
        if len(rows) < into.out_features:
            raise DataError(
                f"the public texts show {len(rows)} directions of the inputs of {name}, and "
                f"lora.rank is {into.out_features}",
                "give lora.public_texts more and longer texts, or lower lora.rank",
            )
        into.weight.copy_(rows.float())


def directions(states: Tensor, rank: int) -> Tensor:
    """Return the first directions of states (N, inputs) as rows (at most rank, inputs), float64.

    What comes out of each row has a mean square of one. The largest entry of each row is positive.
    """
    values = states.double()
    count, width = values.shape
    if width <= count:
        energy, vectors = torch.linalg.eigh(values.T @ values / count)
        rows = vectors.T
    else:
        energy, vectors = torch.linalg.eigh(values @ values.T / count)
        rows = vectors.T @ values
    whole = float(energy.clamp(min=0).sum())
    kept = [k for k in energy.argsort(descending=True).tolist() if energy[k] > _LEAST * whole]
    kept = kept[:rank]
    rows = rows[kept] / rows[kept].norm(dim=1, keepdim=True)
    signs = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True)).sign()
    return rows * signs / energy[kept].sqrt()[:, None]


def _inputs(
    model: SharedModel, layers: dict[str, LoraLayer], texts: Sequence[Sequence[int]]
) -> dict[str, Tensor]:
    """Return what goes into each layer, (N, inputs) float32: evenly many states of each text."""
    each = max(1, _STATES // max(1, len(texts)))
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}
    base: Any = model.module.backbone.base_model
    with ExitStack() as hooks:
        for name, layer in layers.items():
            kept = seen[name]

            def look(_: nn.Module, given: tuple[Any, ...], kept: list[Tensor] = kept) -> None:
                states = given[0].detach().reshape(-1, given[0].shape[-1])
                last, count = len(states) - 1, min(each, len(states))
                places = torch.linspace(0, last, count, device=states.device).long()
                kept.append(states[places].float().cpu())

            handle = cast(nn.Module, layer).register_forward_pre_hook(look)
            hooks.callback(handle.remove)
        for text in texts:
            ids = torch.tensor([list(text)])
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if base.config.is_encoder_decoder:
                batch["decoder_input_ids"] = ids
            base(**model.moved(batch))
    return {name: torch.cat(parts) for name, parts in seen.items()}
