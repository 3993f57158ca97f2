from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.config import DataSection
from fedllm.data.encode import encode, label_set
from fedllm.data.records import Record
from fedllm.data.template import end_token_id, prompt_ids, prompt_text, response_text
from fedllm.errors import ConfigError, DataError

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(str.strip)
indices = st.lists(st.integers(0, 3), max_size=9)


def record(origin: str = "a.jsonl:1", unit: str | None = None, **values: str) -> Record:
    return Record(values, unit, None, origin)


def everything(dataset) -> dict[str, torch.Tensor]:
    return dataset.batch(np.arange(len(dataset)))


def sequence(batch: dict[str, torch.Tensor], row: int) -> list[int]:
    return batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
def test_loss_covers_response_and_end_exactly(kind, request):
    tokenizer = request.getfixturevalue(kind)

    @given(words, words)
    @settings(max_examples=60)
    def check(prompt, response):
        batch = everything(
            encode([record(prompt=prompt, response=response)], "instruction", tokenizer, 1024)
        )
        before = prompt_ids(tokenizer, prompt)
        after = tokenizer(response_text(tokenizer, response), add_special_tokens=False)["input_ids"]
        assert sequence(batch, 0) == [*before, *after, end_token_id(tokenizer)]
        counted = batch["labels"][0] != -100
        first = len(before)
        assert counted.nonzero().flatten().tolist() == list(range(first, first + len(after) + 1))
        assert torch.equal(batch["labels"][0][counted], batch["input_ids"][0][counted])

    check()


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
def test_cut_sequences_keep_template_and_a_part_of_the_response(kind, request):
    tokenizer = request.getfixturevalue(kind)
    template = len(prompt_ids(tokenizer, "")) + 2
    numbers = st.integers(2 * template, 160)

    @given(words, words, numbers)
    @settings(max_examples=80)
    def check(prompt, response, max_length):
        batch = everything(
            encode([record(prompt=prompt, response=response)], "instruction", tokenizer, max_length)
        )
        ids = sequence(batch, 0)
        whole = prompt_ids(tokenizer, prompt)
        after = tokenizer(response_text(tokenizer, response), add_special_tokens=False)["input_ids"]
        answer = [*after, end_token_id(tokenizer)]
        start = int((batch["labels"][0] != -100).nonzero()[0])
        assert len(ids) <= max_length
        assert ids[start:] == answer[: len(ids) - start]
        assert len(ids) - start >= min(len(answer), max_length // 2)
        if len(whole) + len(answer) <= max_length:
            assert (ids[:start], ids[start:]) == (whole, answer)
        elif len(ids) - start < len(answer):
            assert len(ids) == max_length
        # What is left of the prompt is its beginning (template) and its end.
        kept = ids[:start]
        assert any(kept == [*whole[:i], *whole[len(whole) - start + i :]] for i in range(start + 1))

    check()


def test_prompt_gives_way_from_the_left_of_its_content(turns):
    prompt = " ".join(f"w{i}" for i in range(40))
    dataset = encode([record(prompt=prompt, response="rest")], "instruction", turns, 32)
    batch = everything(dataset)
    text = turns.decode(sequence(batch, 0))
    assert text.startswith("<s><|user|>")
    assert text.endswith("w39<|assistant|>rest<|end|>")
    assert "w0" not in text
    assert len(sequence(batch, 0)) == 32


def test_long_response_leaves_the_short_prompt_whole(turns):
    dataset = encode([record(prompt="flu?", response="rest " * 99)], "instruction", turns, 24)
    ids = sequence(everything(dataset), 0)
    assert turns.decode(ids).startswith(prompt_text(turns, "flu?"))
    assert len(ids) == 24
    assert ids[-1] != end_token_id(turns)


def test_template_that_fills_max_length_is_refused(chat):
    with pytest.raises(ConfigError, match="= 8 leaves no room for a response"):
        encode([record(prompt="a", response="b")], "instruction", chat, 8)


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


def test_classification_has_special_tokens_and_label_numbers(turns):
    records = [record(text="my card", label="b"), record(text="a fever " * 50, label="a")]
    dataset = encode(records, "classification", turns, 20, ("a", "b"))
    batch = everything(dataset)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.int64
    assert turns.decode(sequence(batch, 0)) == "<s>my card"
    assert len(sequence(batch, 1)) == 20
    assert batch["input_ids"].shape == (2, 20)


def test_labels_outside_the_public_set_are_refused_without_quoting_them(turns):
    records = [record(f"a.csv:{i}", text="x", label="Private" if i % 2 else "a") for i in range(20)]
    with pytest.raises(DataError) as caught:
        encode(records, "classification", turns, 20, ("a", "b"))
    message = str(caught.value)
    assert "10 rows cannot be used" in message
    assert "a.csv:1: its label is not one of the 2 public labels" in message
    assert "and 5 more" in message
    assert "Private" not in message


@pytest.mark.parametrize("kind", ["plain", "turns"])
def test_empty_response_is_refused(kind, request):
    records = [record(prompt="x", response="y"), record("a.csv:7", prompt="x", response=" \n")]
    with pytest.raises(DataError, match=r"a\.csv:7: its response has no tokens"):
        encode(records, "instruction", request.getfixturevalue(kind), 64)


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


@pytest.mark.parametrize("task", ["classification", "causal", "instruction"])
def test_empty_batch_has_the_rank_and_types_of_any_other(turns, task):
    values = {"text": "x", "label": "a", "prompt": "x", "response": "y"}
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


def test_label_set_comes_from_the_configuration_or_the_public_test_records():
    def tests(*labels: str) -> list[Record]:
        return [record(text="x", label=label) for label in labels]

    open_set = DataSection(train="x")
    assert label_set(open_set, tests("b", "a", "b")) == ("a", "b")
    assert label_set(open_set, tests("10", "9", "-1", "9")) == ("-1", "9", "10")
    assert label_set(open_set, tests("10", "9", "x")) == ("10", "9", "x")
    given_set = DataSection(train="x", labels=("z", "a"))
    assert label_set(given_set, tests("q")) == ("z", "a")
    with pytest.raises(DataError, match=r"list them in data\.labels"):
        label_set(open_set, [])
    with pytest.raises(DataError, match="names a label twice"):
        label_set(DataSection(train="x", labels=("a", "a")), [])


def test_slow_tokenizer_is_refused(plain, monkeypatch):
    monkeypatch.setattr(type(plain), "is_fast", False)
    with pytest.raises(ConfigError, match="slow"):
        encode([record(text="x")], "causal", plain, 8)
