"""What a loaded encoder-decoder does, seen on random tokens before any record is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fedllm.errors import CheckpointError
from fedllm.models.architecture import Architecture
from fedllm.models.behaviour import (
    OTHER_CONFIG,
    PADDED,
    REMEDY,
    Still,
    Texts,
    WatchedLayers,
    close,
)
from fedllm.models.contents import reading
from fedllm.models.encoder_decoder import IGNORED, PromptedModel, shifted


@torch.no_grad()
def observe_pair(folder: Path, model: PreTrainedModel, architecture: Architecture) -> int:
    """Run the model on a few random prompts and responses, and compare.

    Returns
    -------
    int
        Width of the encoder's last states.

    Raises
    ------
    CheckpointError
        If it does not run, gives NaN or infinity, begins a response in a way of its own, or what
        it gives for a record changes from one call to the next, with other records of the
        batch, with padding or with later tokens of the response.
    """
    still = Still(model)
    with reading(f"the model in {folder} does not run", OTHER_CONFIG):
        texts = Texts.of(model, architecture)
        prompts, responses = texts.ids, texts.other
        encoder, decoder = (
            WatchedLayers(cast(nn.ModuleList, model.base_model.get_submodule(name)))
            for name in architecture.lists
        )
        with encoder, decoder:
            logits = _run(model, prompts, responses)
        encoder.require_each_once(folder, prompts)
        decoder.require_each_once(folder, responses)
        if logits.dim() != 3 or logits.shape[:2] != responses.shape:
            raise CheckpointError(f"the model in {folder} gives no logits of its tokens", REMEDY)
        if not bool(logits.isfinite().all()):
            raise CheckpointError(f"the model in {folder} gives NaN or infinity", OTHER_CONFIG)
        still.require(folder, model)
        for wrong, found, expected in _comparisons(model, texts, logits):
            if not close(found, expected):
                raise CheckpointError(f"the model in {folder} {wrong}", REMEDY)
        still.require(folder, model)
        states = cast(Any, model).get_encoder()(input_ids=prompts).last_hidden_state
        return int(states.shape[2])


@torch.no_grad()
def check_pair(folder: Path, module: PromptedModel, architecture: Architecture) -> None:
    """Compare encoder, decoder and head, run apart, with the whole model.

    Raises
    ------
    CheckpointError
        If they give something else.
    """
    with reading(f"the model in {folder} does not run", OTHER_CONFIG):
        texts = Texts.of(module.backbone, architecture)
        batch, other = _batch(texts.ids, texts.other), _batch(texts.other, texts.ids)
        read = module.sides(batch)
        expected = _run(module.backbone, read.prompts, read.responses, read.present)
        frozen = module.stack.has_frozen_part
        apart = batch | ({"states": module.prefix(batch)} if frozen else {})
        # What the decoder finds of other texts is not what the encoder would have left there.
        module.before_loss(other)
        if not close(module.before_loss(apart), expected):
            raise CheckpointError(
                f"the model in {folder} gives something else when its encoder is run apart from "
                "its decoder, or its head from both",
                "adapt all layers (leave lora.last_layers out), or use a model of docs/models.md",
            )


def _batch(prompts: Tensor, responses: Tensor) -> dict[str, Tensor]:
    ids = torch.cat([prompts, responses], dim=1)
    labels = torch.cat([torch.full_like(prompts, IGNORED), responses], dim=1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _run(
    model: PreTrainedModel, prompts: Tensor, responses: Tensor, mask: Tensor | None = None
) -> Tensor:
    config = model.config
    return model(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts) if mask is None else mask,
        decoder_input_ids=shifted(responses, config.pad_token_id, config.decoder_start_token_id),
    ).logits


def _comparisons(
    model: PreTrainedModel, texts: Texts, logits: Tensor
) -> list[tuple[str, Tensor, Tensor]]:
    """Return pairs that must be equal, each with what is wrong if they are not."""
    prompts, responses, other = texts.ids, texts.other, texts.ids.flip(1)
    present = torch.ones_like(prompts)
    beside = _run(
        model, torch.cat([prompts[:1], responses[:1]]), torch.cat([responses[:1], other[:1]])
    )
    found = [
        (
            "gives other numbers when it is run again: it keeps something of the texts before",
            _run(model, prompts, responses),
            logits,
        ),
        (
            "lets a text's numbers depend on the other texts of its batch, so that no gradient "
            "is one record's",
            beside[:1],
            logits[:1],
        ),
        (
            "does not begin responses with its decoder_start_token_id: it would be trained on "
            "something else than it writes",
            model(input_ids=prompts, attention_mask=present, labels=responses).logits,
            logits,
        ),
    ]
    length = prompts.shape[1]
    size = min(PADDED, length)
    half = length // 2
    changed = responses.clone()
    changed[:, half:] = (changed[:, half:] + 1) % int(model.config.vocab_size)
    later = _run(model, prompts, changed)[:, : half + 1]
    found.append(("sees tokens of the response that come later", later, logits[:, : half + 1]))
    padded, mask, answers = prompts.clone(), present.clone(), responses.clone()
    padded[0, size:], mask[0, size:], answers[0, size:] = texts.pad, 0, IGNORED
    short = _run(model, padded, answers, mask)[:1, :size]
    bare = _run(model, prompts[:1, :size], responses[:1, :size])
    return [*found, ("lets a text's numbers depend on its padding", short, bare)]
