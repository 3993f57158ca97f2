from __future__ import annotations

import pytest

from fedllm.data.template import (
    content_span,
    end_token_id,
    prompt_ids,
    prompt_text,
    response_text,
)
from fedllm.errors import ConfigError

from transformers import BertTokenizerFast  # isort: skip


def test_chat_template_is_used_when_there_is_one(chat):
    text = prompt_text(chat, "Is it flu?")
    assert text == "<|im_start|>user\nIs it flu?<|im_end|>\n<|im_start|>assistant\n"
    assert response_text(chat, "Yes.") == "Yes."
    assert chat.convert_ids_to_tokens(end_token_id(chat)) == "<|im_end|>"


def test_turn_tokens_are_used_when_the_vocabulary_has_them(turns):
    assert prompt_text(turns, "Is it flu?") == "<s><|user|>Is it flu?<|assistant|>"
    assert response_text(turns, "Yes.") == "Yes."
    assert turns.convert_ids_to_tokens(end_token_id(turns)) == "<|end|>"


def test_plain_text_otherwise(plain):
    assert prompt_text(plain, "Is it flu?") == "Question: Is it flu?\nAnswer:"
    assert response_text(plain, "Yes.") == " Yes."
    assert plain.convert_ids_to_tokens(end_token_id(plain)) == "</s>"


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
def test_prompt_ids_decode_to_the_prompt_with_one_beginning(kind, request):
    tokenizer = request.getfixturevalue(kind)
    ids = prompt_ids(tokenizer, "Is it flu?")
    assert tokenizer.decode(ids) == prompt_text(tokenizer, "Is it flu?")
    assert ids.count(tokenizer.bos_token_id) == (1 if kind == "turns" else 0)


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
@pytest.mark.parametrize("prompt", ["Is it flu?", "user", "assistant\n", "Answer:", " trimmed "])
def test_content_span_finds_the_prompt(kind, prompt, request):
    tokenizer = request.getfixturevalue(kind)
    text = prompt_text(tokenizer, prompt)
    first, last = content_span(tokenizer, text)
    assert text[first:last].strip() == prompt.strip()


def test_tokenizer_without_an_end_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    bert = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    with pytest.raises(ConfigError, match="no end-of-text token"):
        end_token_id(bert)
