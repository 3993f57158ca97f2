"""Take whole parts out of a Transformer, so that its tensors are smaller and it is faster.

Channels between the two halves of feed-forward layers, groups of attention heads with the key and
value that they share, and blocks. As many of a kind go in each block, so that what is left is an
ordinary checkpoint with other numbers in its config.json. A channel matters by what goes through
it, times the weights that it meets (as in `pruning`); a group of heads by the sum over its own
channels; a block by how far it turns the states that go through it (ShortGPT: Men et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from fedllm.compression.linears import Batch, Linear, input_norms
from fedllm.errors import ConfigError
from fedllm.models.transformer import states_of

_FEED_FORWARD = ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim")
_DEPTH = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The two halves of a block's feed-forward layer.

    Attributes
    ----------
    into : tuple of nn.Linear
        Whose outputs are the channels: one, or two where one is a gate.
    out : nn.Linear
        Whose inputs are the channels.
    """

    into: tuple[nn.Linear, ...]
    out: nn.Linear
    out_name: str


def feed_forwards(
    model: PreTrainedModel, names: Sequence[str]
) -> tuple[str, int, list[FeedForward]]:
    """Find each block's feed-forward layer by its width.

    Parameters
    ----------
    names : sequence of str
        Of the blocks in the model's base (`Architecture.layer_names`).

    Returns
    -------
    tuple
        The key of the configuration, the width, and the layers, block by block.

    Raises
    ------
    ConfigError
        If a block has none that is made of plain linear layers of that width.
    """
    key, width = _named(model.config, _FEED_FORWARD)
    found = []
    for name in names:
        block = model.base_model.get_submodule(name)
        parts = {
            f"{name}.{inner}": part
            for inner, part in block.named_modules()
            if type(part) is nn.Linear
        }
        into = tuple(part for part in parts.values() if part.out_features == width)
        out = [(inner, part) for inner, part in parts.items() if part.in_features == width]
        if len(out) != 1 or len(into) not in (1, 2):
            raise ConfigError(
                f"{name} has no feed-forward layer of {width} channels between plain linear layers",
                "take blocks out, or set a share of the weights to zero, which works on any model",
            )
        found.append(FeedForward(into, out[0][1], out[0][0]))
    return key, width, found


@torch.no_grad()
def remove_channels(
    model: PreTrainedModel, names: Sequence[str], share: float, batches: Iterable[Batch]
) -> int:
    """Take a share of feed-forward channels out of each block, in place.

    Returns
    -------
    int
        How many are left in each.

    Raises
    ------
    ConfigError
        As `feed_forwards`; or if ``share`` is not from 0 to below 1, or there are no batches.
    """
    key, width, parts = feed_forwards(model, names)
    left = width - _going(share, width)
    outs = cast("dict[str, Linear]", {part.out_name: part.out for part in parts})
    norms = input_norms(model, outs, batches)
    for part in parts:
        met = part.out.weight.float().square().sum(dim=0).sqrt()
        kept = (norms[part.out_name] * met).topk(left).indices.sort().values
        for layer in part.into:
            _keep_outputs(layer, kept)
        _keep_inputs(part.out, kept)
    setattr(model.config, key, left)
    return left


@torch.no_grad()
def remove_heads(
    model: PreTrainedModel, names: Sequence[str], share: float, batches: Iterable[Batch]
) -> int:
    """Take a share of attention heads out of each block, in whole groups, in place.

    Returns
    -------
    int
        How many heads are left in each.

    Raises
    ------
    ConfigError
        If the configuration cannot say how wide a head is, so that fewer heads would be wider ones
        (BERT and its kin), or does not allow as many; if projections are not called as in Llama;
        if ``share`` is not from 0 to below 1, or there are no batches.
    """
    config = model.config
    width = getattr(config, "head_dim", None)
    groups = getattr(config, "num_key_value_heads", None)
    if type(width) is not int or type(groups) is not int:
        raise ConfigError(
            f"{config.model_type!r} models have no head_dim in their configuration: with fewer "
            "heads each would be wider, which is another model",
            "take feed-forward channels (--channels) or blocks (--layers) out",
        )
    heads = int(config.num_attention_heads)
    shared = heads // groups
    left = groups - _going(share, groups)
    _require_allowed(config, left * shared, left)
    attentions = {name: _attention(model, name, heads * width) for name in names}
    outs = {f"{name}.{at}": part.o_proj for name, (at, part) in attentions.items()}
    norms = input_norms(model, cast("dict[str, Linear]", outs), batches)
    for name, (at, part) in attentions.items():
        met = part.o_proj.weight.float().square().sum(dim=0)
        scores = (norms[f"{name}.{at}"].square() * met).reshape(groups, -1).sum(dim=1)
        kept = scores.topk(left).indices.sort().values
        _keep_outputs(part.q_proj, _places(kept, shared * width))
        _keep_outputs(part.k_proj, _places(kept, width))
        _keep_outputs(part.v_proj, _places(kept, width))
        _keep_inputs(part.o_proj, _places(kept, shared * width))
    config.num_attention_heads, config.num_key_value_heads = left * shared, left
    return left * shared


@torch.no_grad()
def remove_blocks(
    model: PreTrainedModel, lists: Sequence[str], share: float, batches: Iterable[Batch]
) -> tuple[int, ...]:
    """Take out the blocks that turn states least, in place.

    Parameters
    ----------
    lists : sequence of str
        Names of the lists of blocks (`Architecture.lists`); one.

    Returns
    -------
    tuple of int
        Which blocks are left, by the places that they had.

    Raises
    ------
    ConfigError
        If the model is an encoder-decoder, ``share`` is not from 0 to below 1, or there are no
        batches.
    """
    if len(lists) != 1:
        raise ConfigError(
            "blocks of encoder-decoders are not removed",
            "take feed-forward channels out (--channels)",
        )
    blocks = cast(nn.ModuleList, model.base_model.get_submodule(lists[0]))
    turned = _turned(model, blocks, batches)
    left = len(blocks) - _going(share, len(blocks))
    kept = tuple(turned.topk(left).indices.sort().values.tolist())
    keep_blocks(model, lists[0], kept)
    return kept


def keep_blocks(model: PreTrainedModel, name: str, kept: Sequence[int]) -> None:
    """Leave some of a model's blocks, in place, each with its own kind of attention."""
    blocks = cast(nn.ModuleList, model.base_model.get_submodule(name))
    above, _, own = name.rpartition(".")
    left = nn.ModuleList([blocks[place] for place in kept])
    for place, block in enumerate(left):
        for part in block.modules():
            # Where a block looks up its place, such as in a cache of keys and values.
            if getattr(part, "layer_idx", None) is not None:
                part.layer_idx = place  # type: ignore[assignment]
    setattr(model.base_model.get_submodule(above), own, left)
    key, depth = _named(model.config, _DEPTH)
    for other, value in list(vars(model.config).items()):
        if isinstance(value, list | tuple) and len(value) == depth and other.startswith("layer"):
            setattr(model.config, other, [value[place] for place in kept])
    setattr(model.config, key, len(kept))


def _turned(model: PreTrainedModel, blocks: nn.ModuleList, batches: Iterable[Batch]) -> Tensor:
    """Return for each block one less the mean cosine of states before and after it, float64."""
    sums, tokens = torch.zeros(len(blocks), dtype=torch.float64), 0

    def look(place: int, block: nn.Module, args: Any, kwargs: Any, gives: Any) -> None:
        after = gives[0] if isinstance(gives, tuple) else gives
        both = (states_of(block, args, kwargs).float(), after.float())
        sums[place] += (1 - torch.cosine_similarity(*both, dim=-1)).sum().double()

    with ExitStack() as stack:
        for place, block in enumerate(blocks):
            handle = block.register_forward_hook(partial(look, place), with_kwargs=True)
            stack.callback(handle.remove)
        for batch in batches:
            model.base_model(**batch)
            tokens += batch["input_ids"].numel()
    if not tokens:
        raise ConfigError(
            "there are no texts to see which blocks matter by",
            "give a file of public texts with --texts",
        )
    return sums / tokens


def _attention(model: PreTrainedModel, name: str, width: int) -> tuple[str, Any]:
    for inner, part in model.base_model.get_submodule(name).named_modules():
        own = dict(part.named_children())
        parts = [own.get(f"{which}_proj") for which in "qkvo"]
        plain = all(type(layer) is nn.Linear for layer in parts)
        if plain and cast(nn.Linear, parts[3]).in_features == width:
            return f"{inner}.o_proj", part
    raise ConfigError(
        f"{name} has no attention with q_proj, k_proj, v_proj and o_proj",
        "take feed-forward channels (--channels) or blocks (--layers) out",
    )


def _named(config: PretrainedConfig, keys: Sequence[str]) -> tuple[str, int]:
    for key in keys:
        # Under the name that the configuration itself gives it, which a file has.
        own = config.attribute_map.get(key, key)
        if type(getattr(config, own, None)) is int:
            return own, int(getattr(config, own))
    raise ConfigError(
        f"the configuration of {config.model_type!r} models has none of {', '.join(keys)}",
        "give --share, which works on any model",
    )


def _require_allowed(config: PretrainedConfig, heads: int, groups: int) -> None:
    values = config.to_dict() | {"num_attention_heads": heads, "num_key_value_heads": groups}
    try:
        type(config).from_dict(values)
    except Exception as error:
        raise ConfigError(
            f"the configuration of {config.model_type!r} models does not allow {heads} heads: "
            f"{error.__cause__ or error}",
            "give another share, or take feed-forward channels out (--channels)",
        ) from None


def _going(share: float, count: int) -> int:
    if not 0 <= share < 1:
        raise ConfigError(f"a share of {share:g} cannot go", "give one from 0 to below 1")
    return min(int(share * count), count - 1)


def _places(kept: Tensor, width: int) -> Tensor:
    """Return the channels of groups, each ``width`` wide."""
    return (kept[:, None] * width + torch.arange(width)).reshape(-1)


def _keep_outputs(layer: nn.Linear, kept: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[kept].clone(), layer.weight.requires_grad)
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias[kept].clone(), layer.bias.requires_grad)
    layer.out_features = len(kept)


def _keep_inputs(layer: nn.Linear, kept: Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight[:, kept].clone(), layer.weight.requires_grad)
    layer.in_features = len(kept)
