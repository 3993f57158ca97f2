from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tasks import encode, everything, record, sequence

from fedllm.config import Task
from fedllm.errors import ConfigError, DataError

indices = st.lists(st.integers(0, 3), max_size=9)


@given(indices)
@settings(max_examples=40)
def test_batch_holds_each_chosen_record_padded_on_the_right(turns, chosen):
    texts = ["flu?", "my lost card", "fever and rest " * 4, "water"]
    dataset = encode([record(text=text) for text in texts], "causal", turns, 100)
    batch = dataset.batch(np.asarray(chosen, dtype=np.int64))
    width = batch["input_ids"].shape[1]
    assert width % 8 == 0
    for row, index in enumerate(chosen):
        expected = [*turns(texts[index])["input_ids"], turns.eos_token_id]
        assert sequence(batch, row) == expected
        assert batch["attention_mask"][row].tolist() == [1] * len(expected) + [0] * (
            width - len(expected)
        )
        assert batch["labels"][row].tolist() == expected + [-100] * (width - len(expected))
    if chosen:
        assert width - int(batch["attention_mask"].sum(1).max()) < 8


@pytest.mark.parametrize("task", get_args(Task))
def test_empty_batch_has_the_rank_and_types_of_any_other(turns, task):
    values = {"text": "x", "label": "a", "prompt": "x", "response": "y", "spans": "[]"}
    values |= {"context": "", "answers": '["x","y"]', "pairs": "[[0,1]]"}
    dataset = encode([record(**values)], task, turns, 64, ("a", "b"))
    full, empty = everything(dataset), dataset.batch(np.array([], dtype=np.int64))
    for name, tensor in full.items():
        assert empty[name].shape[0] == 0
        assert empty[name].dim() == tensor.dim()
        assert empty[name].dtype == tensor.dtype == torch.int64
    nothing = encode([], task, turns, 64, ("a", "b"))
    assert (len(nothing), nothing.number_of_units) == (0, 0)
    assert nothing.batch(np.array([], dtype=np.int64))["input_ids"].shape[0] == 0


def test_batch_is_never_wider_than_max_length(turns):
    dataset = encode([record(text="fever " * 50)], "causal", turns, 21)
    assert everything(dataset)["input_ids"].shape == (1, 21)


def test_padding_token_is_the_tokenizers_or_its_end_token(plain, turns):
    records = [record(text="flu"), record(text="fever " * 20)]
    assert plain.pad_token_id is None
    assert (
        everything(encode(records, "causal", plain, 64))["input_ids"][0, -1] == plain.eos_token_id
    )


def test_units_number_the_persons(plain):
    def units(*persons: str | None):
        return encode([record(unit=p, text="a b c") for p in persons], "causal", plain, 16)

    named = units("z", "a", "z", "b")
    assert named.units.tolist() == [0, 1, 0, 2]
    assert named.number_of_units == 3
    alone = units(None, None)
    assert alone.units.tolist() == [0, 1]
    assert alone.units.dtype == np.int64
    with pytest.raises(DataError, match="1 of 2 records name no person"):
        units("a", None)


def test_tokens_are_kept_compact_and_out_of_repr(plain):
    dataset = encode([record(text="my lost card")] * 3000, "causal", plain, 16)
    assert dataset.tokens.dtype == np.int32
    assert len(dataset.offsets) == len(dataset) + 1 == 3001
    assert repr(dataset) == "EncodedDataset(3000 records, 3000 units)"


def test_slow_tokenizer_is_refused(plain, monkeypatch):
    monkeypatch.setattr(type(plain), "is_fast", False)
    with pytest.raises(ConfigError, match="slow"):
        encode([record(text="x")], "causal", plain, 8)


@pytest.mark.parametrize("task", get_args(Task))
@pytest.mark.parametrize("kind", ["turns", "chat", "plain"])
def test_the_tokens_of_a_record_are_the_same_in_any_company(request, task, kind):
    """A tokenizer or a template that kept something of one text would change the next."""
    tokenizer = request.getfixturevalue(kind)
    words = ["flu?", "my <FILL_ME> card", "fever " * 60, "", "<|user|>", "\u0301\u200b", "SECRET"]
    marked = '[{"start":0,"end":1,"label":"a"}]'
    rows = [
        record(
            text=f"{text} {i}",
            label="a",
            spans=marked,
            prompt=f"{text} {i}",
            response=text or "yes",
            context="",
            answers=json.dumps([text or "yes", "no"]),
            pairs="[[0,1]]",
        )
        for i, text in enumerate(words * 3)
    ]

    def tokens(some):
        dataset = encode(some, task, tokenizer, 32, ("a",))
        ends = zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)
        return [dataset.tokens[first:last].tolist() for first, last in ends]

    alone = [tokens([row])[0] for row in rows]
    assert tokens(rows) == alone
    assert tokens(rows[::-1]) == alone[::-1]
    assert [tokens([row])[0] for row in rows] == alone


# Where a record is several sequences, each of them is cut.
@pytest.mark.parametrize("task", sorted(set(get_args(Task)) - {"preference"}))
@given(words=st.lists(st.integers(1, 60), min_size=1, max_size=4))
@settings(max_examples=15)
def test_what_is_cut_off_is_counted(turns, task, words):
    records = [
        record(
            text="fever " * count,
            label="a",
            prompt="fever " * (count // 2),
            response="rest " * (count - count // 2),
            spans="[]",
        )
        for count in words
    ]
    whole = encode(records, task, turns, 400, ("a", "b"))
    assert (whole.cut_records, whole.cut_tokens, whole.cut_off) == (0, 0, "")
    short = encode(records, task, turns, 32, ("a", "b"))
    longer = np.diff(whole.offsets) > 32
    # A text that is continued gets an end token only where it ends.
    ends = int(longer.sum()) if task == "causal" else 0
    missing = len(whole.tokens) - len(short.tokens) - short.cut_tokens
    assert 0 <= missing <= ends
    assert short.cut_records <= longer.sum() <= short.cut_records + ends
    if short.cut_records:
        share = short.cut_tokens / (short.cut_tokens + len(short.tokens))
        assert short.cut_off.startswith(f"{short.cut_records} of {len(words)} records are longer")
        assert f"{share:.1%} of all tokens" in short.cut_off
