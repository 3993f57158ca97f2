"""Sequences that come and go change nothing of each other."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import pytest
import torch
from support.tiny_models import DECODERS, save_tiny
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from fedllm.models import running_batch
from fedllm.models.batch_cache import wider
from fedllm.models.checkpoints import load_tokenizer
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Generator, Writing
from fedllm.models.prompt_cache import PromptCache
from fedllm.models.rows import Row, row_of
from fedllm.models.running_batch import RunningBatch, running_batch_of
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


# --- long prompts --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2"])
@pytest.mark.parametrize("seed", [None, 4])
def test_what_is_read_in_pieces_is_written_as_if_it_were_read_whole(kind, seed, generator_of):
    """Beside rows under way and each other, with and without a kept beginning."""
    generator = generator_of(kind)
    for kept in (None, PromptCache().of(kind, "ward")):
        batch = running_batch_of(generator)
        batch._piece = 7
        batch.add([row_of(generator, tuple(LONG), Writing(20), kept)])
        run_out(batch)
        rows, wanted = later(generator, kept, seed)
        batch.add(rows[:2])
        batch.step()
        batch.add(rows[2:])
        run_out(batch)
        assert [row.transcript.tokens for row in rows] == wanted
        assert [row.reused > 0 for row in rows] == [bool(kept and most) for most in REUSED]


def test_beside_a_long_prompt_a_short_one_is_answered(generator_of):
    generator = generator_of("llama")
    batch, sizes, own = running_batch_of(generator), [], None
    batch._piece, own = 7, batch._logits

    def logits(ids, mask, cache):
        sizes.append(ids.shape[1])
        return own(ids, mask, cache)

    batch._logits = logits
    long = row_of(generator, tuple(LONG), Writing(4), None)
    short = row_of(generator, (5, 6), Writing(3), None)
    assert batch.add([long]) == []
    batch.step()
    batch.add([short])
    for _ in range(2):
        batch.step()
    assert short.transcript.finish == "length"
    assert long.transcript.tokens == []
    assert max(sizes) == 7
    run_out(batch)
    assert long.transcript.tokens == list(generator.write([LONG], Writing(4))[0].tokens)


def test_a_long_prompt_that_is_dropped_is_read_no_further(generator_of):
    generator = generator_of("llama")
    batch = running_batch_of(generator)
    batch._piece = 7
    rows = [row_of(generator, tuple(LONG), Writing(4), None) for _ in range(2)]
    batch.add(rows)
    batch.step()
    batch.drop(rows[:1])
    assert len(batch) == 1
    run_out(batch)
    assert rows[0].transcript.tokens == []
    assert rows[1].transcript.finish == "length"


def test_a_long_prompt_that_breaks_ends_alone(generator_of, monkeypatch):
    generator = generator_of("llama")
    batch, own = running_batch_of(generator), None
    batch._piece, own = 7, batch._logits

    def logits(ids, mask, cache):
        if ids.shape[1] > 1 and mask.shape[1] > 20:
            raise MemoryError
        return own(ids, mask, cache)

    monkeypatch.setattr(batch, "_logits", logits)
    short, long = (row_of(generator, tuple(LONG[:n]), Writing(9), None) for n in (5, 40))
    batch.add([short, long])
    run_out(batch)
    assert isinstance(long.error, MemoryError)
    assert short.transcript.finish == "length"


# --- what breaks ---------------------------------------------------------------------------------


def written(batch, rows, begin=None):
    """Write until all have left; returns the tokens of each that came to its end."""
    batch.add(rows) if begin is None else begin()
    while len(batch):
        batch.step()
    return [None if row.error else row.transcript.tokens for row in rows]


@pytest.mark.parametrize(
    ("part", "at"), [("next", 0), ("next", 1), ("push", 0), ("push", 1), ("keep", 0)]
)
def test_a_rows_own_part_ends_it_alone(part, at, generator_of, monkeypatch):
    generator = generator_of("llama")
    batch, rows = RunningBatch(generator.network, 0), [row(generator, n) for n in range(5)]
    calls = []

    def broken(*arguments):
        calls.append(1)
        if len(calls) > at:
            raise ValueError
        return "" if part == "push" else 5

    if part == "keep":
        rows[2].kept = PromptCache().of("llama", "ward")
        monkeypatch.setattr(type(rows[2].kept), "keep", broken)
    elif part == "next":
        rows[2].drawing = type("Broken", (), {"next": broken})()
    else:
        rows[2].transcript.push = broken
    wanted = expected(generator)
    found = written(batch, rows)
    assert found == [*wanted[:2], None, *wanted[3:]]
    assert isinstance(rows[2].error, ValueError)
    assert rows[2].error.__traceback__ is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_who_breaks_the_pass_of_all_leaves_alone(kind, generator_of):
    """In the second block, when the first has kept keys of the new tokens already."""
    generator = generator_of(kind)
    wanted, seen = expected(generator), []
    # By which one row is known while the model computes.
    mark = next(t for t in range(4, 16) if not any(t in tokens for tokens in wanted))
    batch, rows = RunningBatch(generator.network, 0), [row(generator, n) for n in range(5)]
    rows[1].drawing = type("Marked", (), {"next": lambda self, logits: mark})()
    backbone = generator.network.base_model
    block = (backbone.layers if kind != "gpt2" else backbone.h)[1]

    def look(module, arguments):
        seen[:] = [(arguments[0] == mark).any() and arguments[0].shape[1] == 1]

    def breaks(module, arguments):
        if seen[0]:
            raise ValueError

    hooks = [
        backbone.get_input_embeddings().register_forward_pre_hook(look),
        block.register_forward_pre_hook(breaks),
    ]
    try:
        found = written(batch, rows)
    finally:
        for hook in hooks:
            hook.remove()
    assert found == [wanted[0], None, *wanted[2:]]
    assert isinstance(rows[1].error, ValueError)


def test_where_memory_is_short_the_newest_leaves(generator_of, monkeypatch):
    generator = generator_of("llama")
    wanted, batch = expected(generator), RunningBatch(generator.network, 0)
    rows, own, sizes = [row(generator, number) for number in (0, 2, 3, 1)], batch._logits, []

    def logits(ids, mask, cache):
        sizes.append(len(ids))
        found = own(ids, mask, cache)
        if ids.shape[1] == 1 and len(ids) > 2:
            raise torch.OutOfMemoryError
        return found

    monkeypatch.setattr(batch, "_logits", logits)
    # The third has ended before there is a pass of one token each.
    assert written(batch, rows) == [wanted[0], wanted[2], wanted[3], None]
    assert isinstance(rows[3].error, torch.OutOfMemoryError)
    # Nobody is tried alone, which would take memory.
    assert sizes[:3] == [4, 3, 2]


def test_a_pass_that_breaks_for_nobody_alone_ends_the_newest(generator_of, monkeypatch):
    generator = generator_of("llama")
    wanted, batch = expected(generator), RunningBatch(generator.network, 0)
    rows, own = [row(generator, number) for number in (0, 2, 1)], batch._logits

    def logits(ids, mask, cache):
        if ids.shape[1] == 1 and len(ids) > 2:
            raise ValueError
        return own(ids, mask, cache)

    monkeypatch.setattr(batch, "_logits", logits)
    assert written(batch, rows) == [wanted[0], wanted[2], None]


def test_what_cannot_be_put_beside_the_others_ends_alone(generator_of, monkeypatch):
    """Some layers hold it already when the next has no memory for it."""
    generator = generator_of("llama")
    wanted, batch = expected(generator), RunningBatch(generator.network, 0)
    rows, tried = [row(generator, number) for number in (0, 2, 1)], []

    def merge(own, new, width):
        tried.append(1)
        for layer in own.layers[:1]:
            layer.keys = torch.cat(
                [wider(layer.keys, width, 2), wider(new.layers[0].keys, width, 2)]
            )
        raise MemoryError

    def begin():
        batch.add(rows[:2])
        monkeypatch.setattr(running_batch, "merge", merge)
        batch.add(rows[2:])

    assert written(batch, rows, begin) == [wanted[0], wanted[2], None]
    assert tried == [1]


def test_what_cannot_be_taken_back_is_told(generator_of, monkeypatch):
    generator = generator_of("llama")
    batch = RunningBatch(generator.network, 0)
    batch.add([row(generator, 0), row(generator, 2)])

    def logits(ids, mask, cache):
        cache.layers[0] = DynamicSlidingWindowLayer(sliding_window=2)
        raise ValueError

    with monkeypatch.context() as patched, pytest.raises(ValueError):
        patched.setattr(batch, "_logits", logits)
        batch.step()
    batch.drop(list(batch.rows))
    assert written(batch, [again := row(generator, 1)]) == [expected(generator)[1]]
    assert again.error is None
