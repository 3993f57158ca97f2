"""Texts as batches: none is lost, none comes twice in a pass, padding is marked."""

from __future__ import annotations

import itertools

import torch

from fedllm.compression.texts import endless, single
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
    for batch in passes[0]:
        assert torch.equal(batch["input_ids"] == 99, batch["attention_mask"] == 0)
    assert next(endless(texts[:2], 4, 99, RandomStream.seeded(0)))["input_ids"].shape[0] == 2
