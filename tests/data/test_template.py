from __future__ import annotations

import jinja2
import pytest
from support.tasks import encode

from fedllm.data.records import Record
from fedllm.data.template import (
    Template,
    end_token_id,
    prompt_text,
    template_of,
)
from fedllm.errors import ConfigError
from fedllm.tasks.prompting import TemplatedPrompting

from transformers import BertTokenizerFast  # isort: skip


def test_chat_template_is_used_when_there_is_one(chat):
    text = prompt_text(chat, "Is it flu?")
    assert text == "<|im_start|>user\nIs it flu?<|im_end|>\n<|im_start|>assistant\n"
    assert template_of(chat).response("Yes.") == "Yes."
    assert chat.convert_ids_to_tokens(end_token_id(chat)) == "<|im_end|>"


def test_turn_tokens_are_used_when_the_vocabulary_has_them(turns):
    assert prompt_text(turns, "Is it flu?") == "<s><|user|>Is it flu?<|assistant|>"
    assert template_of(turns).response("Yes.") == "Yes."
    assert turns.convert_ids_to_tokens(end_token_id(turns)) == "<|end|>"


def test_plain_text_otherwise(plain):
    assert prompt_text(plain, "Is it flu?") == "Question: Is it flu?\nAnswer:"
    assert template_of(plain).response("Yes.") == " Yes."
    assert plain.convert_ids_to_tokens(end_token_id(plain)) == "</s>"


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
def test_prompt_ids_decode_to_the_prompt_with_one_beginning(kind, request):
    tokenizer = request.getfixturevalue(kind)
    ids = TemplatedPrompting(tokenizer).prompt("Is it flu?", None).ids
    assert tokenizer.decode(ids) == prompt_text(tokenizer, "Is it flu?")
    assert ids.count(tokenizer.bos_token_id) == (1 if kind == "turns" else 0)


@pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
@pytest.mark.parametrize("prompt", ["Is it flu?", "user", "assistant\n", "Answer:", " trimmed "])
def test_the_span_of_a_prompt_is_found(kind, prompt, request):
    template = template_of(request.getfixturevalue(kind))
    text = template.around(prompt)
    first, last = template.span(text)
    assert text[first:last].strip() == prompt.strip()


@pytest.mark.parametrize("end", ["", "<|im_end|>"])
def test_a_template_that_trims_trims_every_prompt_alike(chat, end, monkeypatch):
    monkeypatch.setattr(chat, "chat_template", "<s>{{ messages[0]['content'] | trim }}" + end)
    assert template_of(chat) == Template("<s>", end, trims=True)
    assert prompt_text(chat, "  a b\n") == f"<s>a b{end}"


@pytest.mark.parametrize(
    "content",
    [
        "{{ messages[0]['content'] | upper }}",
        "{{ messages[0]['content'] }}{{ messages[0]['content'] }}",
        "{{ messages[0]['content'] | length }}{{ messages[0]['content'] }}",
        "no words of the user",
    ],
)
def test_a_template_that_does_more_with_a_prompt_is_refused(chat, content, monkeypatch):
    """It could carry something of one record into the text of another."""
    monkeypatch.setattr(chat, "chat_template", content)
    with pytest.raises(ConfigError, match="does more with a prompt"):
        template_of(chat)


def test_what_a_template_would_do_with_a_record_does_not_matter(chat, monkeypatch):
    monkeypatch.setattr(
        chat, "chat_template", "a {{ messages[0]['content'] | replace('SECRET', '<FILL_ME>') }}"
    )
    assert prompt_text(chat, "SECRET") == "a SECRET"


def test_no_template_reads_a_clock(chat, monkeypatch):
    """A record that made it wait would change what is written around all records after it."""
    monkeypatch.setattr(
        chat,
        "chat_template",
        "{{ strftime_now('%d %b %Y %H:%M:%S') }} {{ messages[0]['content'] }}",
    )
    assert prompt_text(chat, "a") == "26 Jul 2024 00:00:00 a"
    assert template_of(chat) == Template("26 Jul 2024 00:00:00 ", "")


def test_a_template_sees_no_record(chat, monkeypatch):
    """It is run on words of ours alone, however many records there are."""
    seen = []
    render = jinja2.Template.render

    def watched(self, **given):
        seen.append(str(given))
        return render(self, **given)

    monkeypatch.setattr(jinja2.Template, "render", watched)
    rows = [
        Record({"prompt": f"private {i}", "response": "private"}, None, None, f"x:{i}")
        for i in range(40)
    ]
    encode(rows, "instruction", chat, 64, ())
    assert seen
    assert not any("private" in turns for turns in seen)
    few = len(seen)
    encode(rows[:2], "instruction", chat, 64, ())
    assert len(seen) == 2 * few


def test_tokenizer_without_an_end_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n")
    bert = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    with pytest.raises(ConfigError, match="no end-of-text token"):
        end_token_id(bert)
