"""A Transformer whose frozen lower layers can be skipped, and its two task heads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Batch = dict[str, Tensor]
Pooling = Literal["mean", "cls", "last"]


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
    """

    def __init__(self, stack: PreTrainedModel, layers: str, first: int) -> None:
        self.stack = stack
        self.first = first
        self._name = layers

    @property
    def layers(self) -> nn.ModuleList:
        """All layers, in order."""
        return cast(nn.ModuleList, self.stack.get_submodule(self._name))

    @torch.no_grad()
    def below(self, batch: Batch) -> Tensor:
        """Run the frozen part; returns the states (B, T, H) that enter layer ``first``."""
        if self.first == len(self.layers):
            return self.last_states(batch)

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

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
        with self._entered_by(batch["states"]):
            return self.stack(input_ids=ids, attention_mask=mask).last_hidden_state

    @contextmanager
    def _entered_by(self, states: Tensor) -> Iterator[None]:
        # The model's own forward still builds masks and positions and goes through all layers,
        # so that each gets those of its own place and kind. Those below hand on what they got,
        # and the first that is trained reads the given states in place of it.
        def replace(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (states, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": states}

        below = list(self.layers)[: self.first]
        handle = self.layers[self.first].register_forward_pre_hook(replace, with_kwargs=True)
        try:
            for layer in below:
                layer.forward = _hand_on  # type: ignore[method-assign]
            yield
        finally:
            for layer in below:
                layer.__dict__.pop("forward", None)
            handle.remove()


def _hand_on(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


class TextClassifier(nn.Module):
    """A Transformer, pooled to one vector a text, and a linear head in float32.

    Parameters
    ----------
    backbone : PreTrainedModel
        Transformer without a head.
    layers, first
        See `LayerStack`.
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
        layers: str,
        first: int,
        number_of_labels: int,
        pooling: Pooling,
        feature_scale: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.stack = LayerStack(backbone, layers, first)
        self.pooling = pooling
        self.feature_scale = feature_scale
        self.register_buffer("center", None, persistent=False)
        self.head = nn.Linear(backbone.config.hidden_size, number_of_labels)
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

    def forward(self, batch: Batch) -> Tensor:
        """Return logits (B, C), float32; ``batch["states"]`` may hold `prefix`'s result."""
        if self.only_head and "states" in batch:
            return self.head(batch["states"].squeeze(1))
        if self.only_head:
            with torch.no_grad():
                features = self.features(batch)
            return self.head(features)
        return self.head(self.features(batch))


class LanguageModel(nn.Module):
    """A causal Transformer with its own, frozen, language model head."""

    one_vector = False

    def __init__(self, backbone: PreTrainedModel, layers: str, first: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.stack = LayerStack(cast(PreTrainedModel, backbone.base_model), layers, first)

    def prefix(self, batch: Batch) -> Tensor:
        """Run what is frozen; returns states (B, T, H)."""
        return self.stack.below(batch)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute logits, and pick those where a next token counts.

        All are computed: how many of the others' tokens count must not decide how a product is
        carried out.

        Returns
        -------
        logits : Tensor
            (N, V), float32, one row for each of the N tokens that count.
        targets : Tensor
            (N,), int64.
        rows : Tensor
            (N,), int64: the record of the batch that the token belongs to.
        """
        states = self.stack.last_states(batch)
        targets = batch["labels"][:, 1:]
        rows, places = torch.nonzero(targets != -100, as_tuple=True)
        logits = self.backbone.get_output_embeddings()(states[:, :-1])[rows, places]
        return logits.float(), targets[rows, places], rows
