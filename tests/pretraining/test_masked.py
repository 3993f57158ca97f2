"""Masked language model and next-sentence prediction against hand-computed losses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.errors import CheckpointError
from fedllm.pretraining.architectures import build_model
from fedllm.pretraining.config import NetworkSection, OptimizationSection, TokenizerSection
from fedllm.pretraining.masked import MaskedLanguage, MaskedVocabulary, choose_words, segments
from fedllm.pretraining.tokenizer import train_tokenizer
from fedllm.randomness import RandomStream

TEXT = "some words to train a small vocabulary with, and a few more of them " * 5
LENGTH = 32


@pytest.fixture(scope="module")
def tokenizer():
    section = TokenizerSection(kind="wordpiece", vocabulary=300)
    return train_tokenizer([TEXT], section, "bert")


@pytest.fixture(scope="module")
def objective(tokenizer):
    model = build_model(
        NetworkSection(architecture="bert", layers=2, width=32, heads=2),
        OptimizationSection(sequence_length=LENGTH),
        tokenizer,
        seed=1,
    )
    return MaskedLanguage(model, MaskedVocabulary.of(tokenizer), LENGTH)


def pairs(tokenizer, rows: int) -> list[np.ndarray]:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    made = []
    for row in range(rows):
        pair = np.full((2, LENGTH - 3), -1, dtype=np.int64)
        pair[0, : 12 + row] = ids[row : 12 + 2 * row]
        pair[1, :9] = ids[20:29]
        made.append(pair)
    return made


def streams(rows: int) -> list[RandomStream]:
    return [RandomStream.seeded(0, row) for row in range(rows)]


@torch.no_grad()
def test_the_loss_is_that_of_both_heads_over_all_positions(objective, tokenizer):
    batch = objective.batch(pairs(tokenizer, 6), streams(6))
    masked, related = 0.0, 0.0
    for row in range(6):
        count = int(batch["attention_mask"][row].sum())
        output = objective.model(
            input_ids=batch["input_ids"][row : row + 1, :count],
            token_type_ids=batch["token_type_ids"][row : row + 1, :count],
        )
        scores = torch.log_softmax(output.prediction_logits[0].double(), -1)
        for position, label in enumerate(batch["labels"][row, :count].tolist()):
            if label != -100:
                masked -= float(scores[position, label])
        answer = int(batch["next_sentence"][row])
        pair = torch.log_softmax(output.seq_relationship_logits[0].double(), -1)
        related -= float(pair[answer])
    assert objective(batch).tolist() == pytest.approx([masked, related], rel=1e-4)
    assert objective.targets(batch) == (int((batch["labels"] >= 0).sum()), 6)


@torch.no_grad()
def test_right_answers_are_counted_beside_the_losses(objective, tokenizer):
    batch = objective.batch(pairs(tokenizer, 5), streams(5))
    output = objective.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        token_type_ids=batch["token_type_ids"],
    )
    chosen = batch["labels"] >= 0
    words = (output.prediction_logits.argmax(-1) == batch["labels"])[chosen].sum()
    related = (output.seq_relationship_logits.argmax(-1) == batch["next_sentence"]).sum()
    sums, counts = objective.measure(batch).tolist()
    assert objective.measures == (*objective.parts, "masked_accuracy", "next_sentence_accuracy")
    assert sums == pytest.approx([*objective(batch).tolist(), int(words), int(related)])
    assert counts == [int(chosen.sum()), 5] * 2


def test_rows_are_laid_out_as_bert_reads_them(objective, tokenizer):
    batch = objective.batch(pairs(tokenizer, 3), streams(3))
    for row in range(3):
        count = int(batch["attention_mask"][row].sum())
        labels = batch["labels"][row]
        ids = torch.where(labels >= 0, labels, batch["input_ids"][row])
        marks = [i for i in range(count) if ids[i] == tokenizer.sep_token_id]
        assert ids[0] == tokenizer.cls_token_id
        assert marks[1] == count - 1
        assert (ids[count:] == tokenizer.pad_token_id).all()
        expected = [0] * (marks[0] + 1) + [1] * (count - marks[0] - 1)
        assert batch["token_type_ids"][row, :count].tolist() == expected
        assert (labels[[0, *marks]] == -100).all()


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_words_are_chosen_whole(tokenizer, seed, length):
    vocabulary = MaskedVocabulary.of(tokenizer)
    random = RandomStream.seeded(seed)
    tokens = vocabulary.ordinary[random.below(len(vocabulary.ordinary), length).astype(np.int64)]
    tokens = np.concatenate([[vocabulary.cls], tokens, [vocabulary.sep]])
    chosen = choose_words(tokens, vocabulary, random)
    assert not chosen[0]
    assert not chosen[-1]
    assert chosen.any()
    for i in range(2, len(tokens) - 1):
        if vocabulary.continues[tokens[i]]:
            assert chosen[i] == chosen[i - 1]


def test_the_share_of_chosen_and_replaced_tokens(tokenizer):
    vocabulary = MaskedVocabulary.of(tokenizer)
    tokens = vocabulary.ordinary[~vocabulary.continues[vocabulary.ordinary]][:20]
    tokens = np.tile(tokens, 200)
    objective = MaskedLanguage(torch.nn.Linear(1, 1), vocabulary, 5000)
    replaced, chosen = objective._masked(tokens, RandomStream.seeded(1))
    assert chosen.sum() == round(0.15 * len(tokens))
    assert (replaced[~chosen] == tokens[~chosen]).all()
    kinds = replaced[chosen]
    assert (kinds == vocabulary.mask).mean() == pytest.approx(0.8, abs=0.06)
    assert (kinds == tokens[chosen]).mean() == pytest.approx(0.1, abs=0.05)


def test_second_segments_are_from_elsewhere_half_of_the_time():
    pair = np.stack([np.arange(100, 120), np.arange(200, 220)])
    unrelated = 0
    for seed in range(400):
        first, second, label = segments(pair, RandomStream.seeded(seed))
        assert len(first) > 0
        assert len(second) > 0
        assert label == int(second[0] >= 200)
        if not label:
            assert [*first, *second] == list(range(100, 100 + len(first) + len(second)))
        unrelated += label
    assert 160 < unrelated < 240


def test_neither_length_nor_a_passage_start_tells_an_unrelated_segment():
    # A long passage with a short partner, and the other way round.
    for sizes in ((100, 10), (10, 100)):
        pair = np.full((2, 100), -1)
        for row, size in enumerate(sizes):
            pair[row, :size] = 1000 * (row + 1) + np.arange(size)
        lengths = {0: [], 1: []}
        for seed in range(2000):
            _, second, label = segments(pair, RandomStream.seeded(seed))
            lengths[label].append(len(second))
            assert second[0] % 1000 > 0, "no second segment begins where its passage does"
        assert np.mean(lengths[0]) == pytest.approx(np.mean(lengths[1]), rel=0.1)
        assert max(lengths[0]) == max(lengths[1]) == 9


def test_a_tokenizer_without_mask_is_refused():
    plain = train_tokenizer([TEXT], TokenizerSection(vocabulary=300), "llama")
    with pytest.raises(CheckpointError, match="cls, sep, mask"):
        MaskedVocabulary.of(plain)
