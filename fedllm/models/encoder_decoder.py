"""An encoder that reads a prompt and a decoder that writes the response, trained as one model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from fedllm.models.architecture import Architecture
from fedllm.models.readout import TokenModel
from fedllm.models.transformer import Batch
from fedllm.padding import PAD_MULTIPLE

IGNORED = -100


class TwoStacks:
    """The layers of an encoder-decoder: the encoder's, and above them the decoder's.

    Parameters
    ----------
    stack : PreTrainedModel
        The Transformer that holds both.
    architecture : Architecture
        Where its layers are.
    first : int
        Index of the first layer that is trained, counted over both.
    width : int
        Of the encoder's states.
    """

    def __init__(
        self, stack: PreTrainedModel, architecture: Architecture, first: int, width: int
    ) -> None:
        self.stack = stack
        self.first = first
        self.width = width
        self._architecture = architecture

    @property
    def layers(self) -> list[nn.Module]:
        """All layers, in order."""
        return [self.stack.get_submodule(n) for n in self._architecture.layer_names(self.stack)]

    @property
    def trained_layers(self) -> list[nn.Module]:
        """Those from the first on that is trained."""
        return self.layers[self.first :]

    @property
    def has_frozen_part(self) -> bool:
        """Whether the whole encoder is frozen: the cut is between the two, or nowhere.

        T5's first layer computes what all above it add to their attention, so that none of a
        stack's layers can be left out alone.
        """
        encoder = cast(nn.ModuleList, self.stack.get_submodule(self._architecture.lists[0]))
        return self.first >= len(encoder)


@dataclass(frozen=True, slots=True)
class Sides:
    """What an encoder reads of some records, and what a decoder writes.

    Attributes
    ----------
    prompts, present : Tensor
        (B, P) int64: prompts with an end token, and which of it is no padding.
    responses : Tensor
        (B, U) int64, -100 behind each response.
    """

    prompts: Tensor
    present: Tensor
    responses: Tensor


def sides(batch: Batch, pad: int, end: int) -> Sides:
    """Take records apart into prompts and responses; a response starts where labels do.

    Each side is as wide as the longest of the batch, up to a whole multiple, so that the widths
    depend on the records of the batch alone.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    length = ids.shape[1]
    places = torch.arange(length, device=ids.device)
    lengths = batch["attention_mask"].sum(1)
    counted = labels != IGNORED
    starts = torch.where(counted.any(1), counted.int().argmax(1), lengths)[:, None]
    # A response has a token at least, so that there is room for the prompt's end.
    prompts = torch.where(places < starts, ids, pad).masked_fill(places == starts, end)
    present = (places <= starts) & (places < lengths[:, None])
    taken = starts + places[: _width(lengths - starts[:, 0], length)]
    responses = labels.gather(1, taken.clamp(max=length - 1)).masked_fill(taken >= length, IGNORED)
    read = _width(starts[:, 0] + 1, length)
    return Sides(prompts[:, :read], present[:, :read].long(), responses)


def _width(lengths: Tensor, most: int) -> int:
    longest = max([1, *lengths.tolist()])
    return min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, most)


def shifted(responses: Tensor, pad: int, start: int) -> Tensor:
    """Return what a decoder reads to write ``responses``, (B, U): each token's one before."""
    before = nn.functional.pad(responses[:, :-1], (1, 0), value=start)
    return before.masked_fill(before == IGNORED, pad)


class PromptedModel(TokenModel):
    """An encoder-decoder with its own, frozen, language model head.

    Parameters
    ----------
    backbone : PreTrainedModel
        Transformer with the head.
    stack : TwoStacks
        Its layers; one of the decoder's at least is trained.
    """

    def __init__(self, backbone: PreTrainedModel, stack: TwoStacks) -> None:
        super().__init__(backbone)
        self.stack = stack

    def sides(self, batch: Batch) -> Sides:
        """Take a batch apart; see `sides`."""
        config = self.backbone.config
        return sides(batch, int(config.pad_token_id), int(config.eos_token_id))

    @torch.no_grad()
    def prefix(self, batch: Batch) -> Tensor:
        """Run the frozen encoder; returns its last states (B, P, H)."""
        read = self.sides(batch)
        encoder: Any = self.backbone.get_encoder()
        return encoder(input_ids=read.prompts, attention_mask=read.present).last_hidden_state

    def before_loss(self, batch: Batch) -> Tensor:
        """Return logits (B, U, V) of the responses, as pieces give them."""
        return self.tried(self._states(self.sides(batch), batch.get("states")))

    def counted(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states before each token of the responses; see the base class."""
        apart = self.sides(batch)
        rows, places = torch.nonzero(apart.responses != IGNORED, as_tuple=True)
        states = self._states(apart, batch.get("states"))[rows, places]
        return states, apart.responses[rows, places], rows

    def _states(self, apart: Sides, states: Tensor | None) -> Tensor:
        model: Any = self.backbone
        # What is kept of a record may be filled up to the width of all its tokens.
        width = apart.prompts.shape[1]
        read = (
            {"input_ids": apart.prompts}
            if states is None
            else {"encoder_outputs": BaseModelOutput(last_hidden_state=states[:, :width])}
        )
        return self.readout.states(
            **read,
            attention_mask=apart.present,
            decoder_input_ids=shifted(
                apart.responses, model.config.pad_token_id, model.config.decoder_start_token_id
            ),
        )
