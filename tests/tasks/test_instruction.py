from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tasks import encode, everything, record, sequence

from fedllm.data.template import end_token_id, prompt_text, template_of
from fedllm.errors import ConfigError, DataError


def prompt_ids(tokenizer, prompt):
    """Tokens of a prompt between the template's two halves, as it is asked."""
    return tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=False)["input_ids"]


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(str.strip)


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
        text = template_of(tokenizer).response(response)
        after = tokenizer(text, add_special_tokens=False)["input_ids"]
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
        text = template_of(tokenizer).response(response)
        after = tokenizer(text, add_special_tokens=False)["input_ids"]
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


@pytest.mark.parametrize("kind", ["plain", "turns"])
def test_empty_response_is_refused(kind, request):
    records = [record(prompt="x", response="y"), record("a.csv:7", prompt="x", response=" \n")]
    with pytest.raises(DataError, match=r"a\.csv:7: its response has no tokens"):
        encode(records, "instruction", request.getfixturevalue(kind), 64)
