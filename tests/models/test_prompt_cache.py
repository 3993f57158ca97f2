"""What is kept of prompts is found by its owner alone, within its bound, and for a while."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedllm.models.prompt_cache import BLOCK, KEPT_S, PromptCache

# Of one block of two layers, (1, BLOCK, 2) float32 each.
BLOCK_BYTES = 2 * 2 * BLOCK * 2 * 4


def read_of(tokens):
    """What a model would hold of tokens: here themselves."""

    def read(start, stop):
        part = torch.tensor(tokens[start:stop], dtype=torch.float32).reshape(1, -1, 1)
        return ((part.repeat(1, 1, 2), part.repeat(1, 1, 2)),) * 2

    return read


def keep(kept, tokens):
    kept.keep(tokens, read_of(tokens))


def found(kept, tokens):
    """The tokens that are found, as read."""
    blocks = kept.find(tokens)
    return [int(t) for layers in blocks for t in layers[1][1][0, :, 0]]


def text(*parts):
    """Blocks of one number each."""
    return [part for part in parts for _ in range(BLOCK)]


def test_the_longest_common_beginning_is_found():
    kept = PromptCache().of("model", "ward")
    keep(kept, [*text(1, 2, 3), 9])
    assert found(kept, text(1, 2, 3, 4)) == text(1, 2, 3)
    assert found(kept, text(1, 2, 5)) == text(1, 2)
    assert found(kept, [*text(1), *text(2)[1:], 7]) == text(1)
    assert found(kept, text(1)[1:]) == []
    # Behind another beginning the same tokens are others.
    assert found(kept, text(2, 3)) == []


def test_what_begins_alike_is_kept_once():
    cache = PromptCache()
    kept = cache.of("model", "ward")
    keep(kept, text(1, 2, 3))
    keep(kept, text(1, 2, 4))
    assert cache.used_bytes == 4 * BLOCK_BYTES
    assert found(kept, text(1, 2, 3)) == text(1, 2, 3)
    assert found(kept, text(1, 2, 4)) == text(1, 2, 4)


@pytest.mark.parametrize("other", [("model", "lab"), ("other", "ward")])
def test_nobody_else_finds_it(other):
    cache = PromptCache()
    keep(cache.of("model", "ward"), text(1, 2))
    assert found(cache.of(*other), text(1, 2)) == []
    keep(cache.of(*other), text(1))
    assert found(cache.of(*other), text(1, 2)) == text(1)
    assert found(cache.of("model", "ward"), text(1, 2)) == text(1, 2)


def test_the_longest_unused_goes_first():
    cache = PromptCache(4 * BLOCK_BYTES)
    kept = cache.of("model", "ward")
    keep(kept, text(1, 2))
    keep(kept, text(3, 4))
    assert found(kept, text(1, 2)) == text(1, 2)
    keep(kept, text(5))
    # Its end goes before its beginning, which others may share.
    assert found(kept, text(3, 4)) == text(3)
    assert found(kept, text(1, 2)) == text(1, 2)
    keep(kept, text(6, 7, 8))
    assert found(kept, text(6, 7, 8)) == text(6, 7, 8)
    assert cache.used_bytes == 4 * BLOCK_BYTES


def test_of_a_prompt_beyond_the_bound_its_beginning_is_kept():
    cache = PromptCache(2 * BLOCK_BYTES + 1)
    kept = cache.of("model", "ward")
    keep(kept, text(9, 9))
    keep(kept, text(1, 2, 3, 4))
    assert found(kept, text(1, 2, 3, 4)) == text(1, 2)
    nothing = PromptCache(0)
    keep(nothing.of("model", "ward"), text(1))
    assert (nothing.used_bytes, found(nothing.of("model", "ward"), text(1))) == (0, [])


def test_what_nobody_uses_is_forgotten():
    now = [0.0]
    cache = PromptCache(clock=lambda: now[0])
    kept = cache.of("model", "ward")
    assert cache.expire() is None
    keep(kept, text(1, 2))
    now[0] = 100.0
    keep(kept, text(1, 3))
    now[0] = KEPT_S - 1
    assert cache.expire() == 1
    now[0] = KEPT_S
    assert cache.expire() == 100
    assert found(kept, text(1, 2)) == text(1)
    now[0] = 3 * KEPT_S
    assert cache.expire() is None
    assert cache.used_bytes == 0


def test_all_of_it_can_be_forgotten():
    cache = PromptCache()
    keep(cache.of("model", "ward"), text(1))
    cache.clear()
    assert (cache.used_bytes, found(cache.of("model", "ward"), text(1))) == (0, [])


def test_it_shows_no_text():
    cache = PromptCache()
    kept = cache.of("model", "ward")
    keep(kept, text(12345))
    assert "12345" not in f"{cache!r} {kept!r} {list(cache._blocks.values())!r}"


steps = st.lists(
    st.tuples(
        st.booleans(), st.sampled_from("ab"), st.lists(st.integers(1, 3), min_size=1, max_size=4)
    ),
    max_size=30,
)


@given(steps, st.integers(0, 6))
def test_whatever_comes_it_holds_what_was_kept_and_no_more_than_it_may(steps, most):
    cache, said = PromptCache(most * BLOCK_BYTES), {"a": [], "b": []}
    for keeps, tenant, numbers in steps:
        tokens = text(*numbers)
        if keeps:
            keep(cache.of("model", tenant), tokens)
            said[tenant].append(tokens)
            assert found(cache.of("model", tenant), tokens) == tokens[: most * BLOCK]
        else:
            got = found(cache.of("model", tenant), tokens)
            assert got == tokens[: len(got)]
            assert not got or any(one[: len(got)] == got for one in said[tenant])
        assert cache.used_bytes == BLOCK_BYTES * len(cache._blocks) <= most * BLOCK_BYTES
        # None stands behind one that is forgotten.
        there = {block.number for block in cache._blocks.values()}
        parents = {parent for parent, _ in cache._blocks}
        assert parents <= there | {("model", "a"), ("model", "b")}
