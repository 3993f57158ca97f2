"""What a model goes on from is what it was trained on; what is too long gives way in front."""

from __future__ import annotations

import pytest
from support.tasks import record
from support.tokenizers import chat, plain, turns

from fedllm.data.template import Turn, conversation_text, template_of
from fedllm.errors import ConfigError
from fedllm.tasks.instruction import Turns
from fedllm.tasks.prompting import PlainPrompting, TemplatedPrompting

__all__ = ["chat", "plain", "turns"]
every_kind = pytest.mark.parametrize("kind", ["plain", "turns", "chat"])
LONG = "Is it flu or a cold that he has had since he was ill and in bed with fever"


@every_kind
@pytest.mark.parametrize("most", [24, 40, 1000])
def test_prompts_are_cut_as_in_training(kind, most, request):
    tokenizer = request.getfixturevalue(kind)
    answer = "a " * 400
    (trained,) = Turns(tokenizer, 2 * most).sequences([record(prompt=LONG, response=answer)])
    found = TemplatedPrompting(tokenizer).prompt(LONG, most)
    assert found.ids == tuple(trained.ids[: trained.target])
    whole = TemplatedPrompting(tokenizer).prompt(LONG, None)
    assert len(whole.ids) - len(found.ids) == found.cut
    assert (found.cut > 0) == (len(whole.ids) > most)


@every_kind
def test_a_first_question_stands_as_in_training(kind, request):
    tokenizer = request.getfixturevalue(kind)
    prompting = TemplatedPrompting(tokenizer)
    found = prompting.conversation([Turn("user", " Is it flu?")], None)
    assert found == prompting.prompt(" Is it flu?", None)


TALK = [
    Turn("user", "Is it flu?"),
    Turn("assistant", "No."),
    Turn("user", "A cold?"),
    Turn("assistant", "Yes."),
    Turn("user", "Fever?"),
]


@every_kind
def test_each_answer_of_a_conversation_stands_as_in_training(kind, request):
    """What was learned, response and end, is in it token for token."""
    tokenizer = request.getfixturevalue(kind)
    prompting, template = TemplatedPrompting(tokenizer), template_of(tokenizer)
    text = tokenizer.decode(prompting.conversation(TALK, None).ids)
    place = 0
    for turn in TALK:
        place = text.index(
            template.response(turn.content) if turn.role == "assistant" else turn.content, place
        )
    assert text.endswith(template.after)
    ends = prompting.conversation(TALK, None).ids.count(prompting.ends[0])
    asked = 3 if kind == "chat" else 0
    assert ends == 2 + asked
    assert text.count(tokenizer.bos_token or "<s>") <= 1


@every_kind
def test_the_earliest_turns_go_first(kind, request):
    prompting = TemplatedPrompting(request.getfixturevalue(kind))
    whole = prompting.conversation(TALK, None)
    assert (whole.dropped, whole.cut) == (0, 0)
    assert prompting.conversation(TALK, len(whole.ids)) == whole
    shorter = prompting.conversation(TALK, len(whole.ids) - 1)
    assert shorter.dropped == 2
    assert shorter.ids == prompting.conversation(TALK[2:], None).ids
    last = prompting.conversation(TALK[4:], None)
    assert prompting.conversation(TALK, len(last.ids)).ids == last.ids
    assert prompting.conversation(TALK, len(last.ids)).dropped == 4
    cut = prompting.conversation(TALK, len(last.ids) - 1)
    assert (cut.cut, cut.dropped) == (1, 4)


@every_kind
def test_what_the_system_says_stays(kind, request):
    tokenizer = request.getfixturevalue(kind)
    prompting = TemplatedPrompting(tokenizer)
    talk = [Turn("system", "Be brief."), *TALK]
    whole = prompting.conversation(talk, None)
    shorter = prompting.conversation(talk, len(whole.ids) - 1)
    assert shorter.dropped == 2
    text = tokenizer.decode(shorter.ids)
    assert "Be brief." in text
    assert "Is it flu?" not in text
    with pytest.raises(ConfigError, match="there is room for"):
        prompting.conversation(talk, 5)


@every_kind
@pytest.mark.parametrize("system", [True, False])
def test_a_long_conversation_is_rendered_few_times(kind, system, request, monkeypatch):
    prompting, rendered = TemplatedPrompting(request.getfixturevalue(kind)), []
    first = [Turn("system", "Be brief.")] if system else []
    talk = []
    for number in range(16):
        talk += [Turn("user", "a " * (number % 5 + 1)), Turn("assistant", "b " * (number % 3))]
    talk.append(Turn("user", "Is it flu?"))
    cuts = [(n, prompting.conversation([*first, *talk[n:]], None).ids) for n in range(0, 33, 2)]

    def counted(tokenizer, turns):
        rendered.append(turns)
        return conversation_text(tokenizer, turns)

    monkeypatch.setattr("fedllm.tasks.prompting.conversation_text", counted)
    for number, (dropped, ids) in enumerate(cuts):
        for most in (len(ids), len(cuts[max(number - 1, 0)][1]) - (number > 0)):
            rendered.clear()
            found = prompting.conversation([*first, *talk], most)
            assert (found.ids, found.dropped) == (ids, dropped)
            assert len(rendered) <= 2 * (number + 1).bit_length()


@every_kind
def test_no_room_is_told(kind, request):
    prompting = TemplatedPrompting(request.getfixturevalue(kind))
    around = len(prompting.prompt("x", None).ids) - 1
    for most in range(around + 1):
        with pytest.raises(ConfigError, match="room for a prompt"):
            prompting.prompt(LONG, most)
    with pytest.raises(ConfigError, match="is not the user's"):
        prompting.conversation(TALK[:2], None)
    with pytest.raises(ConfigError, match="is not the user's"):
        prompting.conversation([], None)


def test_plain_texts_are_gone_on_with(turns, plain):
    found = PlainPrompting(turns).prompt(LONG, None)
    assert found.ids == tuple(turns(LONG)["input_ids"])
    assert found.ids[0] == turns.bos_token_id
    cut = PlainPrompting(turns).prompt(LONG, 5)
    assert cut.ids == (turns.bos_token_id, *found.ids[-4:])
    assert cut.cut == len(found.ids) - 5
    with pytest.raises(ConfigError, match="room for a prompt"):
        PlainPrompting(turns).prompt(LONG, 1)
    assert PlainPrompting(plain).ends == (plain.eos_token_id,)


def test_where_no_token_ends_a_turn_the_next_question_does(plain, turns, chat):
    assert TemplatedPrompting(plain).next_turn == ("\nQuestion:",)
    assert TemplatedPrompting(plain).gap == " "
    for tokenizer in (turns, chat):
        assert TemplatedPrompting(tokenizer).next_turn == ()
        assert TemplatedPrompting(tokenizer).gap == ""


# --- hostile templates --------------------------------------------------------------------------

CODE = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.popen('touch {mark}').read() }}",
    "{{ lipsum.__globals__['os'].system('touch {mark}') }}",
    "{% set x = raise_exception.__globals__ %}{{ x['__builtins__']['open']('{mark}', 'w') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{{ messages.append({'role': 'user'}) }}",
    "{{ ('%s' % messages).format_map(messages) }}{{ '{0.__class__}'.format(messages) }}",
    "{% for i in range(10 ** 9) %}x{% endfor %}",
]


@pytest.mark.parametrize("code", CODE)
def test_a_template_with_code_does_nothing(code, chat, tmp_path, monkeypatch):
    """It runs in transformers' sandbox, and what it asks for there is refused in plain words."""
    mark = tmp_path / "ran"
    monkeypatch.setattr(chat, "chat_template", code.replace("{mark}", str(mark)))
    with pytest.raises(ConfigError, match="chat template") as caught:
        TemplatedPrompting(chat).conversation(TALK, None)
    assert not mark.exists()
    assert "flu" not in str(caught.value)
    with pytest.raises(ConfigError, match="chat template"):
        TemplatedPrompting(chat).prompt("Is it flu?", None)


def test_a_template_that_refuses_a_conversation_quotes_nothing(chat, monkeypatch):
    monkeypatch.setattr(chat, "chat_template", "{{ raise_exception(messages[0]['content']) }}")
    with pytest.raises(ConfigError, match="does not take these turns") as caught:
        TemplatedPrompting(chat).conversation(TALK, None)
    assert "flu" not in str(caught.value)


def test_a_template_that_does_more_than_stand_around_serves_conversations(chat, monkeypatch):
    monkeypatch.setattr(
        chat,
        "chat_template",
        "{% for m in messages %}[{{ m.role }}] {{ m.content | upper }}\n{% endfor %}[assistant]",
    )
    prompting = TemplatedPrompting(chat)
    assert chat.decode(prompting.prompt("Is it flu?", None).ids).endswith("[assistant]")
    assert prompting.gap == ""
    with pytest.raises(ConfigError, match="there is room for"):
        prompting.prompt(LONG, 4)
