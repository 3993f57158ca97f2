"""Losses of tokens are computed a piece at a time, and are those of all logits at once."""

import numpy as np
import pytest
import torch
from support.decoders import loaded
from support.doubles import doubles
from support.one_by_one import same
from support.tiny_models import save_tiny
from torch.nn.functional import cross_entropy

from fedllm.errors import CheckpointError
from fedllm.models.readout import _ROWS_AT_ONCE, row_losses
from fedllm.privacy.dpsgd import forget_step, per_sample_gradients, per_sample_hooks
from fedllm.training.evaluate import evaluate
from fedllm.training.objectives import record_losses

# Logits that are cut off, scaled, divided, shifted, or as they are.
KINDS = ["gemma2", "gemma3_text", "granite", "cohere2", "opt", "mixtral", "gpt2", "t5", "bart"]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    folder = save_tiny(request.param, tmp_path_factory.mktemp(request.param))
    return loaded(folder, request.param)


def whole_losses(model, batch):
    """Return each record's loss from the logits of all tokens that the model itself gives."""
    if model.module.backbone.config.is_encoder_decoder:
        read, config = model.module.sides(batch), model.module.backbone.config
        shifted = torch.nn.functional.pad(read.responses[:, :-1], (1, 0))
        shifted[:, 0] = config.decoder_start_token_id
        logits = model.module.backbone(
            input_ids=read.prompts,
            attention_mask=read.present,
            decoder_input_ids=shifted.masked_fill(shifted == -100, config.pad_token_id),
        ).logits
        targets = read.responses
    else:
        given = {key: batch[key] for key in ("input_ids", "attention_mask")}
        logits, targets = model.module.backbone(**given).logits[:, :-1], batch["labels"][:, 1:]
    each = cross_entropy(logits.transpose(1, 2).double(), targets, reduction="none")
    return each.sum(1) / (targets != -100).sum(1)


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_pieces_give_the_losses_and_gradients_of_the_whole(
    model, at_once, random_dataset, monkeypatch
):
    monkeypatch.setattr(model.module.readout, "tokens_at_once", at_once)
    data = random_dataset(4, "instruction")
    with doubles():
        batch = data.batch(np.arange(4))
        wanted = [
            (loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.trained)]))
            for loss in (whole_losses(model, data.batch(np.array([row])))[0] for row in range(4))
        ]
        losses, gradients = (torch.stack(parts) for parts in zip(*wanted, strict=True))
        same(record_losses(model, batch).detach(), losses.detach())
        with per_sample_hooks(model.module):
            found = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
        forget_step(model.module)
        same(torch.cat([g.reshape(4, -1) for g in found], dim=1), gradients)


def test_no_more_logits_than_a_piece_are_ever_there(model, random_dataset, monkeypatch):
    monkeypatch.setattr(model.module.readout, "tokens_at_once", 2)
    seen = []
    head = model.module.backbone.get_output_embeddings()
    handle = head.register_forward_hook(lambda _, __, out: seen.append(out.shape[:-1].numel()))
    try:
        data = random_dataset(4, "instruction")
        with doubles():
            batch = data.batch(np.arange(4))
            record_losses(model, batch).sum().backward()
            counted = sum(seen)
            evaluate(model, data)
    finally:
        handle.remove()
    assert max(seen) == 2
    # Where nothing counts, nothing is computed; and nothing is computed twice.
    # A decoder's first token follows nothing; that of an answer follows the prompt.
    first = 0 if model.module.backbone.config.is_encoder_decoder else 1
    assert counted == int((batch["labels"][:, first:] != -100).sum())
    assert sum(seen) == 2 * counted


def test_a_head_that_mixes_tokens_is_refused(tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    folder, forward = save_tiny("llama", tmp_path / "model"), LlamaForCausalLM.forward

    def mixing(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits + output.logits.roll(1, dims=1)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", mixing)
    with pytest.raises(CheckpointError, match="run apart"):
        loaded(folder, "llama")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_those_of_pytorch(dtype):
    stream = np.random.default_rng(0)
    logits = torch.from_numpy(stream.normal(0, 5, (2 * _ROWS_AT_ONCE + 1, 50))).to(dtype)
    targets = torch.from_numpy(stream.integers(0, 50, len(logits)))
    given = logits.clone().requires_grad_()
    wanted = cross_entropy(given.float(), targets, reduction="none")
    wanted.sum().backward()
    slopes = torch.empty_like(logits)
    torch.testing.assert_close(row_losses(logits, targets, slopes), wanted.detach())
    torch.testing.assert_close(slopes, given.grad)
    torch.testing.assert_close(row_losses(logits, targets, None), wanted.detach())


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_the_likeliest_token_is_that_of_all_logits(model, at_once, monkeypatch):
    batch = {
        "input_ids": torch.randint(4, 16, (3, 9), generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.ones(3, 9, dtype=torch.int64),
    }
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :4] = -100
    with torch.no_grad():
        right = model.module(batch)[0].argmax(-1)
    monkeypatch.setattr(model.module.readout, "tokens_at_once", at_once)
    assert model.module.likeliest(batch).tolist() == right.tolist()


def test_a_head_of_integers_gives_as_many_logits_at_once_as_one_of_numbers():
    from fedllm.compression.integers import to_integers
    from fedllm.models.readout import Readout

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(4, 1000)

        def get_output_embeddings(self):
            return self.head

    made = Model()
    before = Readout(made, made.head).tokens_at_once
    to_integers(made, "int8")
    assert Readout(made, made.head).tokens_at_once == before
