"""Tokenizers: reversible, sensible in English and Chinese, special tokens in place."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.errors import CheckpointError, DataError
from fedllm.pretraining.config import TokenizerSection
from fedllm.pretraining.corpus import read_documents
from fedllm.pretraining.tokenizer import (
    boundary_id,
    continues_word,
    load_tokenizer,
    train_tokenizer,
)

ENGLISH = "The patient was sent to the ward with a fever of 39 degrees. "
CHINESE = "商业银行应当按照规定报送资产负债表、利润表以及其他财务会计报表。"


@pytest.fixture(scope="module")
def bpe():
    return train_tokenizer([ENGLISH * 20, CHINESE * 20], TokenizerSection(vocabulary=500), "llama")


@pytest.fixture(scope="module")
def wordpiece():
    section = TokenizerSection(kind="wordpiece", vocabulary=300)
    return train_tokenizer([ENGLISH * 20], section, "bert")


@settings(max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_is_reversible(bpe, text):
    ids = bpe.backend_tokenizer.encode(text, add_special_tokens=False).ids
    if not any(token in text for token in bpe.all_special_tokens):
        assert bpe.decode(ids) == text


def test_both_languages_compress(bpe):
    for text in (ENGLISH, CHINESE):
        ids = bpe(text, add_special_tokens=False)["input_ids"]
        assert len(ids) * 3 < len(text.encode())


@pytest.mark.data
def test_real_text_of_both_languages_compresses(public_data):
    sources = ("pretrain_en", "pretrain_zh")

    def read(part: str, documents: int) -> list[list[str]]:
        return [
            [
                d.text
                for d in itertools.islice(
                    read_documents(str(public_data / s / f"{part}.jsonl.gz"), "text"), documents
                )
            ]
            for s in sources
        ]

    train = itertools.chain(*zip(*read("train", 20), strict=True))
    tokenizer = train_tokenizer(train, TokenizerSection(vocabulary=8192), "llama")
    for texts, most in zip(read("val", 8), (0.35, 0.65), strict=True):
        tokens = sum(len(e.ids) for e in tokenizer.backend_tokenizer.encode_batch(texts))
        assert tokens < most * sum(map(len, texts))


def test_digits_are_single_tokens(bpe):
    tokens = bpe.tokenize("482917")
    assert tokens == list("482917")


def test_special_tokens_are_one_token_each(bpe):
    text = "<|user|>a<|assistant|>b<|end|>"
    ids = bpe(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 5
    assert ids[-1] == bpe.eos_token_id
    assert bpe("a")["input_ids"][0] == boundary_id(bpe) == bpe.bos_token_id


def test_a_saved_tokenizer_is_the_same(bpe, tmp_path):
    bpe.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again(ENGLISH + CHINESE)["input_ids"] == bpe(ENGLISH + CHINESE)["input_ids"]
    assert again.chat_template == bpe.chat_template
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(tmp_path / "none")


def test_wordpiece_marks_continuations(wordpiece):
    ids = wordpiece("Patients feverish", add_special_tokens=False)["input_ids"]
    tokens = wordpiece.convert_ids_to_tokens(ids)
    continued = continues_word(wordpiece)
    assert [continued[i] for i in ids] == [t.startswith("##") for t in tokens]
    assert any(continued[i] for i in ids)
    assert wordpiece("a", "b").input_ids[0] == wordpiece.cls_token_id


def test_bpe_words_begin_at_spaces_and_chinese_ones_anywhere(bpe):
    text = " zebra qrst. 12" + CHINESE[:4]
    ids = bpe.backend_tokenizer.encode(text, add_special_tokens=False).ids
    continued = continues_word(bpe)
    words: list[list[int]] = []
    for i in ids:
        if continued[i]:
            words[-1].append(i)
        else:
            words.append([i])
    assert [bpe.decode(w) for w in words[:6]] == [" zebra", " qrst", ".", " ", "1", "2"]


def test_no_text_is_refused():
    with pytest.raises(DataError, match="no text"):
        train_tokenizer([], TokenizerSection(), "llama")
