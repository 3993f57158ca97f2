"""Sequences that come and go change nothing of each other."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pytest
import torch
from support.tiny_models import DECODERS, save_tiny
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

from fedllm.models.checkpoints import load_tokenizer
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Generator, Writing
from fedllm.models.prompt_cache import PromptCache
from fedllm.models.running_batch import Row, RunningBatch, row_of, running_batch_of
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


# --- beginnings that were read before -----------------------------------------------------------

LONG = [4 + (7 * place + place // 5) % 12 for place in range(40)]
# Which prompts begin as LONG does, in how many tokens, and how they go on.
BEGUN = [
    (40, [5, 6]),
    (33, [9]),
    (20, [4, 4, 7, 8, 9, 5, 6]),
    (3, [8] * 9),
    (17, []),
    (0, [9] * 18),
    (32, []),
]
REUSED = [32, 32, 16, 0, 16, 0, 16]


def later(generator, kept, seed):
    prompts = [[*LONG[:size], *rest] for size, rest in BEGUN]
    sampling = Sampling(0.0 if seed is None else 1.2, seed=seed)
    way = Writing(6, sampling=sampling)
    rows = [row_of(generator, tuple(prompt), way, kept) for prompt in prompts]
    return rows, [list(one.tokens) for one in generator.write(prompts, way)]


def run_out(batch):
    while len(batch):
        batch.step()


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("seed", [None, 4])
def test_a_kept_beginning_changes_nothing(kind, seed, generator_of):
    """Beside rows under way, rows with other beginnings, and windows shorter than either."""
    generator = generator_of(kind)
    batch, kept = running_batch_of(generator), PromptCache().of(kind, "ward")
    first = row_of(generator, tuple(LONG), Writing(20), kept)
    batch.add([first])
    batch.step()
    rows, wanted = later(generator, kept, seed)
    batch.add(rows)
    run_out(batch)
    assert [row.transcript.tokens for row in rows] == wanted
    # Where several are read in one pass, some read more than they must.
    assert all(0 <= most - row.reused < 16 for row, most in zip(rows, REUSED, strict=True))
    assert [row.reused > 0 for row in rows] == [most > 0 for most in REUSED]
    assert first.transcript.tokens == list(generator.write([LONG], Writing(20))[0].tokens)
    for row, tokens, most in zip(later(generator, kept, seed)[0], wanted, REUSED, strict=True):
        batch.add([row])
        run_out(batch)
        assert row.transcript.tokens == tokens
        assert row.reused >= most


def test_what_was_written_is_kept_too(generator_of):
    generator = generator_of("llama")
    batch, kept = running_batch_of(generator), PromptCache().of("llama", "ward")
    rows = [row_of(generator, tuple(LONG[:size]), Writing(20), kept) for size in (15, 9)]
    batch.add(rows)
    run_out(batch)
    # The last token that was written was never read.
    for row, most in zip(rows, (32, 16), strict=True):
        tokens = [*row.prompt, *row.transcript.tokens]
        again = row_of(generator, (*tokens, 5), Writing(4), kept)
        batch.add([again])
        run_out(batch)
        assert again.reused == most
        wanted = generator.write([again.prompt], Writing(4))[0].tokens
        assert again.transcript.tokens == list(wanted)


def test_rows_without_a_place_to_keep_keep_nothing(generator_of):
    generator, cache = generator_of("llama"), PromptCache()
    batch = running_batch_of(generator)
    batch.add([row_of(generator, tuple(LONG), Writing(20), None)])
    run_out(batch)
    assert cache.used_bytes == 0


def test_of_a_cache_that_cannot_be_cut_nothing_is_kept(generator_of, monkeypatch):
    """A layer that holds another thing than each token's keys and values."""
    generator, cache = generator_of("llama"), PromptCache()
    batch, kept = running_batch_of(generator), cache.of("llama", "ward")

    class Other(DynamicLayer):
        pass

    def logits(ids, mask, held, own=batch._logits):
        found = own(ids, mask, held)
        held.layers[1].__class__ = Other
        return found

    monkeypatch.setattr(batch, "_logits", logits)
    batch.add([row_of(generator, tuple(LONG), Writing(4), kept)])
    run_out(batch)
    assert cache.used_bytes == 0


def test_what_is_kept_holds_no_larger_table(generator_of):
    """Each block has memory of its own, not a part of the batch's."""
    generator, cache = generator_of("llama"), PromptCache()
    batch = running_batch_of(generator)
    batch.add([row_of(generator, tuple(LONG), Writing(1), cache.of("llama", "ward"))])
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layers in cache.find(("llama", "ward"), LONG)
        for pair in layers
        for tensor in pair
    }
    assert sum(held.values()) == cache.used_bytes > 0
