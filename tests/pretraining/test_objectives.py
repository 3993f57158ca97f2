"""Losses against hand-computed ones."""

import numpy as np
import pytest
import torch

from fedllm.pretraining.architectures import build_model
from fedllm.pretraining.config import NetworkSection, OptimizationSection, TokenizerSection
from fedllm.pretraining.objectives import NextToken, document_attention
from fedllm.pretraining.tokenizer import train_tokenizer

TEXT = "some words to train a small vocabulary with, and a few more of them " * 5
NETWORK = {"layers": 2, "width": 32, "heads": 2, "inner": 64}
TRAINING = OptimizationSection(sequence_length=24)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], TokenizerSection(vocabulary=320), "llama")


@pytest.fixture(scope="module")
def llama(tokenizer):
    return build_model(NetworkSection(**NETWORK), TRAINING, tokenizer, seed=1)


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
    alone = float(NextToken(llama, b)({"rows": torch.tensor([document])}))
    losses = []
    for other in ([b, 70, 71, 72], [b, 90, 40, 33]):
        both = float(NextToken(llama, b)({"rows": torch.tensor([other + document])}))
        losses.append(both - float(NextToken(llama, b)({"rows": torch.tensor([[*other, b]])})))
    assert losses == pytest.approx([alone, alone], rel=1e-4)


@torch.no_grad()
def test_rows_without_boundaries_need_no_mask(llama, tokenizer):
    b = tokenizer.bos_token_id
    inputs = torch.randint(20, 300, (3, 10))
    inputs[0, 0] = b
    positions, mask = document_attention(inputs, b)
    assert mask is None
    assert positions.tolist() == [list(range(10))] * 3


def test_mask_and_positions():
    positions, mask = document_attention(torch.tensor([[5, 1, 6, 1]]), 1)
    assert positions.tolist() == [[0, 0, 1, 0]]
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]]]]
