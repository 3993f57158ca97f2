"""What a loaded Transformer does, seen on random tokens before any record is touched.

Structure does not tell everything: a routine inside a layer may look at the whole batch, draw
numbers, or reach past the layer below. So each model is tried once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedllm.errors import CheckpointError
from fedllm.models.architecture import Architecture
from fedllm.models.contents import reading
from fedllm.models.device import state_of_chance
from fedllm.models.language_model import LanguageModel
from fedllm.models.layers import REMEDY
from fedllm.models.stillness import Belongings
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import Behaviour, TextClassifier, states_of

_LENGTH, PADDED = 10, 6
OTHER_CONFIG = "use the config.json that came with the weights"
# Largest difference of what must be equal but for rounding, in parts of the largest value.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
_ROUGH = 0.1


@torch.no_grad()
def observe(folder: Path, model: PreTrainedModel, architecture: Architecture) -> Behaviour:
    """Run the model on a few random texts, and compare.

    Raises
    ------
    CheckpointError
        If it does not run, gives NaN or infinity, or what it gives for a text changes from one
        call to the next, with other texts of the batch, with padding or, if it should be
        causal, with later tokens.
    """
    still = Still(model)
    with reading(f"the model in {folder} does not run", OTHER_CONFIG):
        texts = Texts.of(model, architecture)
        seen = WatchedLayers(model.base_model.get_submodule(architecture.layers))  # type: ignore[arg-type]
        with seen:
            states = texts.run(model, texts.ids)
        seen.require_each_once(folder, texts.ids)
        if states.dim() != 3 or states.shape[:2] != texts.ids.shape:
            raise CheckpointError(f"the model in {folder} gives no states of its tokens", REMEDY)
        if not bool(states.isfinite().all()):
            raise CheckpointError(f"the model in {folder} gives NaN or infinity", OTHER_CONFIG)
        still.require(folder, model)
        for wrong, found, expected in texts.comparisons(model, states, architecture.causal):
            if not close(found, expected):
                raise CheckpointError(f"the model in {folder} {wrong}", REMEDY)
        still.require(folder, model)
        return Behaviour(width=states.shape[2], outputs=seen.outputs)


@torch.no_grad()
def check_parts(
    folder: Path,
    module: TextClassifier | TokenClassifier | LanguageModel,
    architecture: Architecture,
) -> None:
    """Compare the frozen and the trained part, run apart, with the whole model.

    Raises
    ------
    CheckpointError
        If they give something else: a trained layer reaches past the states that enter it, or
        the head is no function of the last states.
    """
    with reading(f"the model in {folder} does not run", OTHER_CONFIG):
        if module.stack.first == len(module.stack.layers):
            return
        texts = Texts.of(module.backbone, architecture)
        whole: Any = module.backbone
        mask = torch.ones_like(texts.ids)
        batch = {"input_ids": texts.ids, "attention_mask": mask}
        # Logits with a head for them, else states.
        expected = whole(**batch)[0]
        apart = batch | ({"states": module.prefix(batch)} if module.stack.first else {})
        # What a layer finds of other texts is not what the whole model would have left there.
        whole(input_ids=texts.other, attention_mask=mask)
        found = module.before_loss(apart)
        wanted = expected[:, : found.shape[1]]
        if not close(found, wanted):
            raise CheckpointError(
                f"the model in {folder} gives something else when its frozen layers are run apart "
                "from those that are trained",
                "adapt all layers (leave lora.last_layers out), or use a model of docs/models.md",
            )


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    largest = float(other.abs().max()) if other.numel() else 0.0
    bound = _TOLERANCE.get(other.dtype, _ROUGH) * max(largest, 1e-6)
    return one.shape == other.shape and bool((one - other).abs().max() <= bound)


@dataclass(frozen=True)
class Texts:
    """Twice two texts of random tokens, (2, T), and the token that pads."""

    ids: Tensor
    other: Tensor
    pad: int

    @classmethod
    def of(cls, model: PreTrainedModel, architecture: Architecture) -> Texts:
        """Draw them, the same for all models of one vocabulary."""
        vocabulary = int(model.config.vocab_size)
        pad = architecture.counted_from
        if pad is None:
            pad = getattr(model.config, "pad_token_id", None) or 0
        length = min(_LENGTH, architecture.positions or _LENGTH)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(0, max(vocabulary - 1, 1), (4, length), generator=generator)
        # Any token but the one that pads.
        ids = (ids + (ids >= pad)).clamp(max=vocabulary - 1).to(model.device)
        return cls(ids[:2], ids[2:], int(pad))

    def run(self, model: PreTrainedModel, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the states (B, T, H) of texts without padding, or with a mask."""
        present = torch.ones_like(ids) if mask is None else mask
        return model.base_model(input_ids=ids, attention_mask=present)[0]

    def comparisons(
        self, model: PreTrainedModel, states: Tensor, causal: bool
    ) -> list[tuple[str, Tensor, Tensor]]:
        """Return pairs that must be equal, each with what is wrong if they are not."""
        beside = self.run(model, torch.cat([self.ids[:1], self.other[:1]]))
        # After another text, of which nothing may be left.
        again = self.run(model, self.ids)
        found = [
            (
                "gives other numbers when it is run again: it keeps something of the texts before",
                again,
                states,
            ),
            (
                "lets a text's numbers depend on the other texts of its batch, so that no "
                "gradient is one record's",
                beside[:1],
                states[:1],
            ),
        ]
        length = self.ids.shape[1]
        if causal and length > 1:
            last = torch.cat([self.ids[:, :-1], self.other[:, -1:]], dim=1)
            words = "sees tokens that come later, though models of its type predict them"
            found.append((words, self.run(model, last)[:, :-1], states[:, :-1]))
        size = min(PADDED, length)
        padded = self.ids.clone()
        padded[0, size:] = self.pad
        mask = torch.ones_like(padded)
        mask[0, size:] = 0
        short = self.run(model, padded, mask)[:1, :size]
        bare = self.run(model, self.ids[:1, :size])
        return [*found, ("lets a text's numbers depend on its padding", short, bare)]


class Still:
    """What must be as it was after the model has run."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._belongings, self._chance = Belongings(model), state_of_chance(model.device)

    def require(self, folder: Path, model: PreTrainedModel) -> None:
        """Refuse a model that wrote on itself or drew since."""
        if (name := self._belongings.changed(model)) is not None:
            raise CheckpointError(
                f"the model in {folder} writes on itself while it runs ({name}): what it computes "
                "of a text could depend on the texts before",
                REMEDY,
            )
        if not torch.equal(self._chance, state_of_chance(model.device)):
            raise CheckpointError(f"the model in {folder} draws random numbers", REMEDY)


class WatchedLayers:
    """Watches which layers run, in which order, and what they take and give."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self._layers = layers
        self._handles: list[Any] = []
        self._order: list[int] = []
        self._shapes: list[tuple[int, ...]] = []
        self._kinds: set[int] = set()

    def __enter__(self) -> WatchedLayers:
        for place, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_hook(self._hook(place), with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, place: int) -> Callable[..., None]:
        def note(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> None:
            self._order.append(place)
            given = output[0] if isinstance(output, tuple) else output
            for states in (states_of(layer, args, kwargs), given):
                self._shapes.append(tuple(states.shape))
            self._kinds.add(len(output) if isinstance(output, tuple) else 0)

        return note

    @property
    def outputs(self) -> int:
        """How many values a layer returns; see `Behaviour`."""
        (kind,) = self._kinds
        return kind

    def require_each_once(self, folder: Path, ids: Tensor) -> None:
        """Refuse layers that did not run once each, in order, on states of ``ids`` (B, T).

        Raises
        ------
        CheckpointError
            If they did not.
        """
        in_order = self._order == list(range(len(self._layers)))
        of_tokens = {shape[:2] for shape in self._shapes} == {tuple(ids.shape)}
        of_one_shape = len(set(self._shapes)) == 1 and len(self._shapes[0]) == 3
        if not (in_order and of_tokens and of_one_shape and len(self._kinds) == 1):
            raise CheckpointError(
                f"the model in {folder} does not run its layers once each, one after the other, "
                "from states to states",
                REMEDY,
            )
