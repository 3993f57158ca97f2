"""Texts as batches: none is lost, none comes twice in a pass, padding is marked."""

from __future__ import annotations

import itertools

from fedllm.compression.texts import endless, padded, single
from fedllm.randomness import RandomStream


def test_single_texts_are_drawn_evenly_and_have_no_padding():
    texts = [(place, 5, 6) for place in range(10)]
    found = single(texts, 3)
    assert [batch["input_ids"][0, 0].item() for batch in found] == [0, 3, 6]
    assert all(batch["attention_mask"].all() for batch in found)
    assert len(single(texts, 99)) == 10


def test_each_pass_has_every_text_once_in_an_order_of_its_own():
    texts = [tuple([place] * (2 + place % 3)) for place in range(12)]
    batches = endless(texts, 4, 99, RandomStream.seeded(0))
    passes = [list(itertools.islice(batches, 3)) for _ in range(2)]
    seen = [[int(row[0]) for batch in one for row in batch["input_ids"]] for one in passes]
    assert [sorted(one) for one in seen] == [list(range(12))] * 2
    assert seen[0] != seen[1]
    # There are as many of each length as a batch takes, and batches come in no order of length.
    assert all(batch["attention_mask"].all() for one in passes for batch in one)
    widths = [[batch["input_ids"].shape[1] for batch in one] for one in passes]
    assert [sorted(one) for one in widths] == [[2, 3, 4]] * 2
    assert [2, 3, 4] not in widths
    assert next(endless(texts[:2], 4, 99, RandomStream.seeded(0)))["input_ids"].shape[0] == 2


def test_texts_that_fill_no_batch_wait_for_another_pass():
    texts = [(place, 1) for place in range(5)]
    batches = endless(texts, 2, 99, RandomStream.seeded(0))
    for _ in range(8):
        seen = [int(row[0]) for _ in range(2) for row in next(batches)["input_ids"]]
        assert len(set(seen)) == 4


def test_padding_is_marked():
    batch = padded([(1, 2), (3, 4, 5)], 99)
    assert batch["input_ids"].tolist() == [[1, 2, 99], [3, 4, 5]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
