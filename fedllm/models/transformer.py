"""A Transformer whose frozen lower layers can be skipped, and its head for whole texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Batch = dict[str, Tensor]
Pooling = Literal["mean", "cls", "last"]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the layers of a model take and give.

    Attributes
    ----------
    width : int
        Of the states after the last layer.
    outputs : int
        0 if a layer returns states alone; else how many values it returns, states first.
    """

    width: int
    outputs: int


def states_of(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Return the states that a layer is called with: its first argument."""
    return args[0] if args else kwargs[first_argument(layer)]


def first_argument(layer: nn.Module) -> str:
    """Return the name under which a layer takes its states."""
    names = signature(type(layer).forward).parameters
    return next(name for name in names if name != "self")


class _Reached(Exception):
    def __init__(self, states: Tensor) -> None:
        self.states = states


class LayerStack:
    """The layers of a Hugging Face Transformer, cut below the first one that is trained.

    Parameters
    ----------
    stack : PreTrainedModel
        The Transformer without a task head.
    layers : str
        Dotted name of its list of layers.
    first : int
        Index of the first layer that is trained; everything below it is frozen.
    behaviour : Behaviour
        What its layers take and give.
    """

    def __init__(
        self, stack: PreTrainedModel, layers: str, first: int, behaviour: Behaviour
    ) -> None:
        self.stack = stack
        self.first = first
        self.width = behaviour.width
        self.name = layers
        self._outputs = behaviour.outputs

    def returns(self, outputs: int) -> None:
        """Say what `Behaviour.outputs` is, where it was not known before."""
        self._outputs = outputs

    @property
    def layers(self) -> nn.ModuleList:
        """All layers, in order."""
        return cast(nn.ModuleList, self.stack.get_submodule(self.name))

    @property
    def trained_layers(self) -> list[nn.Module]:
        """Those from the first on that is trained."""
        return list(self.layers)[self.first :]

    @property
    def has_frozen_part(self) -> bool:
        """Whether something below the trained layers runs alone."""
        return self.first > 0

    @torch.no_grad()
    def below(self, batch: Batch) -> Tensor:
        """Run the frozen part; returns the states (B, T, H) that enter layer ``first``."""
        if self.first == len(self.layers):
            return self.last_states(batch)

        def stop(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(states_of(layer, args, kwargs))

        handle = self.layers[self.first].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.last_states(batch)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise RuntimeError("the Transformer did not run its layers")

    def last_states(self, batch: Batch) -> Tensor:
        """Return the states (B, T, H) after the last layer.

        With ``batch["states"]``, the result of `below`, only the layers above run.
        """
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if "states" not in batch:
            return self.stack(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.first == len(self.layers):
            return batch["states"]
        with self.entered_by(batch["states"]):
            return self.stack(input_ids=ids, attention_mask=mask).last_hidden_state

    @contextmanager
    def entered_by(self, states: Tensor) -> Iterator[None]:
        """Let the layers below ``first`` do nothing, and that one read ``states`` (B, T, H).

        The model's own forward still builds masks and positions and goes through all layers, so
        that each gets those of its own place and kind.
        """

        def replace(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (states, *args[1:]), kwargs
            return args, {**kwargs, first_argument(layer): states}

        below = list(self.layers)[: self.first]
        handle = self.layers[self.first].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            for layer in below:
                layer.forward = partial(self._hand_on, layer)  # type: ignore[method-assign]
            yield
        finally:
            for layer in below:
                layer.__dict__.pop("forward", None)
            handle.remove()

    def _hand_on(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        states = states_of(layer, args, kwargs)
        # Of what else it would return, such as attention weights, nothing was asked for.
        return (states, *[None] * (self._outputs - 1)) if self._outputs else states


class TextClassifier(nn.Module):
    """A Transformer, pooled to one vector a text, and a linear head in float32.

    Parameters
    ----------
    backbone : PreTrainedModel
        Transformer without a head.
    stack : LayerStack
        Its layers.
    number_of_labels : int
        Classes of the head; it starts at zero, so that every class is equally likely.
    pooling : {"mean", "cls", "last"}
        How token states (B, T, H) become features (B, H).
    feature_scale : float
        Length that features are normalised to; 0 leaves them as they are.

    Attributes
    ----------
    center : Tensor, optional
        (H,), taken off features of length 1 before they get their length: what all texts of a
        task have in common costs clipping norm and tells no class apart.
    """

    center: Tensor | None

    def __init__(
        self,
        backbone: PreTrainedModel,
        stack: LayerStack,
        number_of_labels: int,
        pooling: Pooling,
        feature_scale: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stack = stack
        self.pooling = pooling
        self.feature_scale = feature_scale
        self.register_buffer("center", None, persistent=False)
        self.head = nn.Linear(stack.width, number_of_labels, device=backbone.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def only_head(self) -> bool:
        """Whether the whole Transformer is frozen."""
        return self.stack.first == len(self.stack.layers)

    @property
    def one_vector(self) -> bool:
        """Whether what is frozen ends in one vector a record instead of one a token."""
        return self.only_head

    def features(self, batch: Batch) -> Tensor:
        """Return pooled features (B, H), float32."""
        states = self.stack.last_states(batch).float()
        mask = batch["attention_mask"]
        if self.pooling == "cls":
            pooled = states[:, 0]
        elif self.pooling == "last":
            places = torch.arange(mask.shape[1], device=mask.device)
            last = (mask * places).argmax(dim=1)
            pooled = states[torch.arange(len(states), device=mask.device), last]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        if self.feature_scale == 0.0:
            return pooled
        if self.center is not None:
            pooled = nn.functional.normalize(pooled, dim=-1) - self.center
        return self.feature_scale * nn.functional.normalize(pooled, dim=-1)

    def prefix(self, batch: Batch) -> Tensor:
        """Run what is frozen; (B, T, H) states, or (B, 1, H) features if all layers are."""
        if self.only_head:
            with torch.no_grad():
                return self.features(batch).unsqueeze(1)
        return self.stack.below(batch)

    def before_loss(self, batch: Batch) -> Tensor:
        """Return what the Transformer itself gives: states (B, T, H)."""
        return self.stack.last_states(batch)

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (B, C), float32; ``batch["states"]`` may hold `prefix`'s result."""
        if self.only_head and "states" in batch:
            return self.head(batch["states"].squeeze(1))
        if self.only_head:
            with torch.no_grad():
                features = self.features(batch)
            return self.head(features)
        return self.head(self.features(batch))
