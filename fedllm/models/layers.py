"""Where the layers of a Transformer are: one list for each of its stacks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from fedllm.errors import CheckpointError

REMEDY = "use one of the models in docs/models.md, which says why others are refused"


def layers_by_part(config: PretrainedConfig, two: bool) -> dict[str, int]:
    """Return how many layers each part has, by what its names start with.

    Parameters
    ----------
    two : bool
        Whether there is an encoder and a decoder.
    """
    if not two:
        return {"": int(config.num_hidden_layers)}
    decoders = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers"))
    own = next((count for count in decoders if count is not None), config.num_hidden_layers)
    return {"encoder.": int(config.num_hidden_layers), "decoder.": int(own)}


def list_of_layers(path: Path, model: PreTrainedModel, kind: str, within: str, count: int) -> str:
    """Return the name of the one list that holds all layers, of one class and none twice.

    Parameters
    ----------
    path : Path
        The configuration's file, for words.
    within : str
        What the names of the part start with; empty for the whole model.

    Raises
    ------
    CheckpointError
        If there is no such list, or more than one.
    """
    found = [
        name
        for name, part in model.named_modules()
        if name.startswith(within)
        and isinstance(part, nn.ModuleList)
        and len(part) == count
        and len({type(layer) for layer in part}) == 1
        # Not a list inside a layer that happens to be as long.
        and not any(isinstance(model.get_submodule(above), nn.ModuleList) for above in _above(name))
    ]
    if len(found) != 1:
        raise CheckpointError(
            f"{path.parent}: the {within.replace('.', ' ')}layers of {kind!r} models cannot be "
            f"found: there are {len(found)} lists of {count} layers of one class; models whose "
            "layers share their weights, or differ in kind, are not supported",
            REMEDY,
        )
    owners: dict[int, int] = {}
    for place, layer in enumerate(cast(nn.ModuleList, model.get_submodule(found[0]))):
        for parameter in layer.parameters():
            if owners.setdefault(id(parameter), place) != place:
                raise CheckpointError(
                    f"{path.parent}: layers of {kind!r} models share their weights: a gradient "
                    "would not be one layer's",
                    REMEDY,
                )
    return found[0]


def _above(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
