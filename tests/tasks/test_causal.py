from __future__ import annotations

import pytest
import torch
from support.tasks import encode, everything, record, sequence

from fedllm.errors import DataError


def test_causal_counts_every_token_and_ends_the_text(turns, plain):
    records = [record(text="Rest and water."), record(text="call the bank " * 30)]
    batch = everything(encode(records, "causal", turns, 40))
    first = sequence(batch, 0)
    assert turns.decode(first) == "<s>Rest and water.</s>"
    assert batch["labels"][0].tolist() == first + [-100] * (40 - len(first))
    assert len(sequence(batch, 1)) == 40
    assert torch.equal(batch["labels"][1], batch["input_ids"][1])
    one_token = plain("a", add_special_tokens=False)["input_ids"]
    assert len(one_token) == 1
    with pytest.raises(DataError, match="no tokens to learn from"):
        encode([record(text="a")], "causal", plain, 1)
