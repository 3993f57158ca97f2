"""Losses against hand-computed ones."""

import numpy as np
import pytest
import torch

from fedllm.pretraining.architectures import build_model
from fedllm.pretraining.config import NetworkSection, OptimizationSection, TokenizerSection
from fedllm.pretraining.objectives import NextToken, additive_mask, document_attention
from fedllm.pretraining.tokenizer import train_tokenizer

TEXT = "some words to train a small vocabulary with, and a few more of them " * 5
NETWORK = {"layers": 2, "width": 32, "heads": 2, "inner": 64}
TRAINING = OptimizationSection(sequence_length=24)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], TokenizerSection(vocabulary=320), "llama")


@pytest.fixture(scope="module", params=["eager", "sdpa"])
def llama(tokenizer, request):
    model = build_model(NetworkSection(**NETWORK), TRAINING, tokenizer, seed=1)
    model.set_attn_implementation(request.param)
    return model


def log_probability(model, tokens: list[int], target: int) -> float:
    logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
    return float(torch.log_softmax(logits, 0)[target])


@torch.no_grad()
def test_packed_documents_have_the_loss_they_have_alone(llama, tokenizer):
    b = tokenizer.bos_token_id
    row = [50, 51, b, 60, 61, 62, b, 70, b, b, 80, 81, 82]  # begins in mid-document
    objective = NextToken(llama, b)
    batch = objective.batch([np.asarray(row)], [])
    expected = 0.0
    for i in range(len(row) - 1):
        start = max([j for j in range(i + 1) if row[j] == b], default=0)
        expected -= log_probability(llama, row[start : i + 1], row[i + 1])
    assert objective.targets(batch) == (12,)
    assert float(objective(batch)) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_neighbours_in_a_row_do_not_matter(llama, tokenizer):
    b = tokenizer.bos_token_id
    document = [b, 60, 61, 62, 63, b]
    objective = NextToken(llama, b)

    def loss(row: list[int]) -> float:
        return float(objective(objective.batch([np.asarray(row)], [])))

    alone, losses = loss(document), []
    for other in ([b, 70, 71, 72], [b, 90, 40, 33]):
        losses.append(loss(other + document) - loss([*other, b]))
    assert losses == pytest.approx([alone, alone], rel=1e-4)


@torch.no_grad()
def test_rows_without_boundaries_need_no_mask_where_a_causal_kernel_runs(llama, tokenizer):
    b = tokenizer.bos_token_id
    rows = [np.asarray([b, *range(20, 30)]), np.arange(30, 41)]
    objective = NextToken(llama, b)
    batch = objective.batch(rows, [])
    assert ("mask" in batch) == (llama.config._attn_implementation == "eager")
    expected = sum(
        -log_probability(llama, row[: i + 1].tolist(), int(row[i + 1]))
        for row in rows
        for i in range(10)
    )
    assert float(objective(batch)) == pytest.approx(expected, rel=1e-5)


def test_mask_and_positions():
    positions, mask = document_attention(torch.tensor([[5, 1, 6, 1]]), 1)
    assert positions.tolist() == [[0, 0, 1, 0]]
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]]]


def test_the_added_mask_has_the_dtype_of_the_scores():
    mask = torch.tensor([[True, False]])
    assert additive_mask(mask).tolist() == [[0.0, -np.inf]]
    assert additive_mask(mask).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert additive_mask(mask).dtype == torch.bfloat16
