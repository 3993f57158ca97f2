"""A file of public texts is read whole, as its rows or as its lines, or refused by name."""

from __future__ import annotations

import pytest

from fedllm.errors import DataError
from fedllm.models.checkpoints import load_tokenizer
from fedllm.tasks.public_texts import read_texts


@pytest.fixture
def tokenizer(tiny_checkpoint):
    return load_tokenizer(tiny_checkpoint("bert"))


def test_texts_are_read_as_tokens_and_cut(tmp_path, tokenizer):
    (tmp_path / "a.jsonl").write_text(
        '{"words": "card pay fee"}\n{"words": "loan rate"}\n{"words": "fee"}\n'
    )
    (tmp_path / "a.txt").write_text("card pay fee\nloan rate\nfee\n")
    whole = read_texts(str(tmp_path / "a.jsonl"), "words", tokenizer, 50)
    assert whole == read_texts(str(tmp_path / "a.txt"), "words", tokenizer, 50)
    assert len(whole) == 2
    cut = read_texts(str(tmp_path / "a.txt"), "words", tokenizer, 2)
    assert [len(text) for text in cut] == [2, 2]


def test_a_file_without_texts_is_named(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match=r"a\.txt"):
        read_texts(str(tmp_path / "a.txt"), "text", tokenizer, 50)
