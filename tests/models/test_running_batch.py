"""Sequences that come and go change nothing of each other."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pytest
import torch
from support.tiny_models import DECODERS, save_tiny
from transformers import AutoModelForCausalLM

from fedllm.models.checkpoints import load_tokenizer
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Generator, Writing
from fedllm.models.running_batch import Row, RunningBatch
from fedllm.models.transcript import Transcript

PROMPTS = [[4, 5, 6], [7, 4, 9, 10, 11, 4, 6, 8, 5], [12], [13, 14, 4, 5, 7, 8], [9, 9, 15]]
NEW = [6, 3, 9, 1, 7]


@pytest.fixture(scope="module")
def generator_of(tmp_path_factory):
    @cache
    def make(kind):
        folder = save_tiny(kind, tmp_path_factory.mktemp(kind))
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        return Generator(model, load_tokenizer(folder), (3,))

    return make


def row(generator, number, seed=None):
    sampling = Sampling(0.0 if seed is None else 1.2, seed=seed)
    transcript = Transcript(generator.tokenizer, generator.ends, (), NEW[number])
    return Row(tuple(PROMPTS[number]), sampling.drawing(PROMPTS[number]), transcript)


def expected(generator, seed=None):
    sampling = Sampling(0.0 if seed is None else 1.2, seed=seed)
    ways = [Writing(most, sampling=sampling) for most in NEW]
    return [list(one.tokens) for one in generator.write(PROMPTS, ways)]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("seed", [None, 4])
def test_rows_that_come_and_go_write_as_in_a_batch(kind, seed, generator_of):
    generator = generator_of(kind)
    batch = RunningBatch(generator.network, 0)
    rows = [row(generator, number, seed) for number in range(5)]
    heard = defaultdict(str)

    def took(pieces):
        for one, piece in pieces:
            heard[id(one)] += piece

    took(batch.add(rows[:2]))
    took(batch.step())
    took(batch.add(rows[2:3]))
    took(batch.step())
    took(batch.step())
    took(batch.add(rows[3:]))
    while len(batch):
        took(batch.step())
    assert [one.transcript.tokens for one in rows] == expected(generator, seed)
    assert [heard[id(one)] for one in rows] == [one.transcript.text for one in rows]
    assert batch.step() == []
    took(batch.add([again := row(generator, 0, seed)]))
    while len(batch):
        took(batch.step())
    assert again.transcript.tokens == expected(generator, seed)[0]


def test_rows_that_are_dropped_leave_the_others(generator_of):
    generator = generator_of("gemma2")
    batch = RunningBatch(generator.network, 0)
    rows = [row(generator, number) for number in range(5)]
    batch.add(rows)
    batch.step()
    batch.drop([rows[1], rows[4]])
    while len(batch):
        batch.step()
    wanted = expected(generator)
    for number in (0, 2, 3):
        assert rows[number].transcript.tokens == wanted[number]
    assert len(rows[4].transcript.tokens) == 2


def test_what_no_row_needs_is_given_back(generator_of):
    generator = generator_of("llama")
    batch = RunningBatch(generator.network, 0)
    rows = [row(generator, number) for number in (1, 2)]
    batch.add(rows)
    wide = batch._mask.shape[1]
    batch.drop(rows[:1])
    assert batch._mask.shape == (1, 1)
    assert wide == 9
    assert all(layer.keys.shape[2] == 1 for layer in batch._cache.layers)
    batch.drop(rows[1:])
    assert batch._cache is None
    assert batch.add([]) == []
    assert torch.is_tensor(batch._mask)
