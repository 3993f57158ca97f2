"""A model whose linear layers and embeddings are integers: rounded, or made empty to be filled."""

from __future__ import annotations

from typing import Literal, cast, get_args

from torch import nn
from transformers.pytorch_utils import Conv1D

from fedllm.compression.int8 import Int8Embedding, Int8Linear, is_table
from fedllm.compression.linears import Linear
from fedllm.compression.weight_only import Int4Linear, Int8WeightsLinear
from fedllm.errors import ConfigError

Integers = Literal["int8", "int8-weights", "int4"]
INTEGERS: tuple[Integers, ...] = get_args(Integers)
_LAYERS: dict[Integers, type[Int8Linear | Int4Linear]] = {
    "int8": Int8Linear,
    "int8-weights": Int8WeightsLinear,
    "int4": Int4Linear,
}
_ROUNDED = (Int8Linear, Int8Embedding, Int4Linear)


def to_integers(model: nn.Module, held: Integers, *, empty: bool = False) -> int:
    """Round a model's linear layers and embeddings, in place; it can be used, not trained.

    A head that is tied to the embeddings is rounded with them, and both are one table. Embeddings
    take 8 bits everywhere: rows are few numbers, each of which counts.

    Parameters
    ----------
    held : {"int8", "int8-weights", "int4"}
        As what layers are held: integers that rounded states meet, or such of 8 or 4 bits that
        plain states meet.
    empty : bool
        Whether only the parts are made, for integers that were written before.

    Returns
    -------
    int
        How many parts were rounded.

    Raises
    ------
    ConfigError
        If there is none, or if it is rounded already.
    """
    if any(isinstance(part, _ROUNDED) for part in model.modules()):
        raise ConfigError("the model is quantised already", "quantise the one that it was made of")
    tables, layers = parts(model)
    if not tables and not layers:
        raise ConfigError(
            "the model has no plain linear layers or embeddings", "use fedllm compress distill"
        )
    made: dict[int, Int8Embedding] = {}
    for name, table in tables.items():
        new = Int8Embedding.like(table) if empty else Int8Embedding.of(table)
        made[id(table.weight)] = new
        put(model, name, new)
    for name, plain in layers.items():
        tied = made.get(id(plain.weight))
        kind = _LAYERS[held if tied is None or held == "int8" else "int8-weights"]
        layer = kind.like(plain) if empty or tied is not None else kind.of(plain)
        if tied is not None:
            layer.weight, layer.scales = tied.weight, tied.scales
            if plain.bias is not None:
                layer.bias = plain.bias.detach().float()
        put(model, name, layer)
    return len(tables) + len(layers)


def parts(model: nn.Module) -> tuple[dict[str, nn.Embedding], dict[str, Linear]]:
    """Return the tables and the linear layers that are rounded, by their names."""
    named = dict(model.named_modules())
    tables = {n: cast(nn.Embedding, part) for n, part in named.items() if is_table(part)}
    # A class of its own may do something else with its weights.
    layers = {n: cast(Linear, p) for n, p in named.items() if type(p) in (nn.Linear, Conv1D)}
    return tables, layers


def quicken(model: nn.Module) -> None:
    """Lay weights of 4 bits out for this processor; other processors cannot read them then."""
    for part in model.modules():
        if isinstance(part, Int4Linear):
            part.quicken()


def put(model: nn.Module, name: str, part: nn.Module) -> None:
    """Put a part into a model under a dotted name."""
    above, _, own = name.rpartition(".")
    setattr(model.get_submodule(above), own, part)
