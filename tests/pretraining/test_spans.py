"""Span corruption: nothing lost, nothing leaked, the loss by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.errors import CheckpointError
from fedllm.pretraining.architectures import build_model
from fedllm.pretraining.config import NetworkSection, OptimizationSection, TokenizerSection
from fedllm.pretraining.spans import SpanCorruption, sentinel_ids, span_lengths
from fedllm.pretraining.tokenizer import train_tokenizer
from fedllm.randomness import RandomStream

TEXT = "some words to train a small vocabulary with, and a few more of them " * 5
LENGTH = 40


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], TokenizerSection(vocabulary=340), "t5")


@pytest.fixture(scope="module")
def objective(tokenizer):
    model = build_model(
        NetworkSection(architecture="t5", layers=1, width=32, heads=2, inner=64),
        OptimizationSection(sequence_length=LENGTH),
        tokenizer,
        seed=1,
    )
    return SpanCorruption(model, sentinel_ids(tokenizer), tokenizer.eos_token_id, LENGTH)


@given(st.integers(8, 600), st.integers(1, 32), st.integers(0, 99))
def test_spans_divide_the_passage(tokens, most, seed):
    kept, removed = span_lengths(tokens, most, RandomStream.seeded(seed))
    assert len(kept) == len(removed) <= most
    assert kept.min() >= 1
    assert removed.min() >= 1
    assert removed.sum() == max(1, round(0.15 * tokens))
    assert kept.sum() + removed.sum() == tokens


@settings(max_examples=50)
@given(st.integers(8, LENGTH - 1), st.integers(0, 99))
def test_input_and_target_together_give_the_passage(objective, length, seed):
    passage = np.full(LENGTH - 1, -1, dtype=np.int64)
    passage[:length] = 100 + np.arange(length)
    batch = objective.batch([passage], [RandomStream.seeded(seed)])
    count = int(batch["attention_mask"].sum())
    source = batch["input_ids"][0, :count].tolist()
    target = batch["labels"][0].tolist()
    assert source[-1] == target[-1] == objective._end
    spans, current = {}, None
    for token in target[:-1]:
        if token < 100:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    restored = [t for token in source[:-1] for t in spans.get(token, [token])]
    assert restored == passage[:length].tolist()
    assert batch["decoder_input_ids"][0].tolist() == [0, *target[:-1]]


@torch.no_grad()
def test_the_loss_is_that_of_each_row_alone(objective):
    lengths, rows = (39, 17), []
    for length in lengths:
        passage = np.full(LENGTH - 1, -1, dtype=np.int64)
        passage[:length] = 100 + np.arange(length)
        rows.append(passage)
    batch = objective.batch(rows, [RandomStream.seeded(i) for i in range(2)])
    expected, count = 0.0, 0
    for row in range(2):
        source = batch["input_ids"][row][batch["attention_mask"][row] == 1]
        target = batch["labels"][row][batch["labels"][row] != -100]
        logits = objective.model(
            input_ids=source[None],
            decoder_input_ids=torch.cat([torch.zeros(1, dtype=torch.long), target[:-1]])[None],
        ).logits[0]
        scores = torch.log_softmax(logits.double(), -1)
        expected -= float(scores.gather(1, target[:, None]).sum())
        count += len(target)
    assert objective.targets(batch) == (count,)
    assert float(objective(batch)) == pytest.approx(expected, rel=1e-4)


def test_a_tokenizer_without_sentinels_is_refused():
    plain = train_tokenizer([TEXT], TokenizerSection(vocabulary=300), "llama")
    with pytest.raises(CheckpointError, match="sentinel"):
        sentinel_ids(plain)
