"""A conversation remembers what was said, as far as the model can read."""

from __future__ import annotations

import pytest

from fedllm.errors import ConfigError
from fedllm.models.drawing import Sampling
from fedllm.models.generation import Writing
from fedllm.models.prompt_cache import PromptCache
from fedllm.models.running_batch import RunningBatch
from fedllm.serving.conversation import Conversation
from fedllm.serving.usable import open_usable


@pytest.fixture
def talk(released):
    found = open_usable(released("llama", "instruction"), max_length=40)
    return Conversation.of(found)


def drawn(tokens):
    """Another answer than the likeliest, which may be to end at once."""
    return Writing(tokens, sampling=Sampling(3.0, seed=3))


def said(talk):
    return [(turn.role, turn.content) for turn in talk.turns]


def test_turns_are_kept_and_forgotten(talk):
    pieces = []
    told = talk.say("my card rate", drawn(8), pieces.append)
    assert told in ([], ["the answer ended after 8 tokens (--max-new-tokens)"])
    answer = "".join(pieces)
    assert answer
    assert said(talk) == [("user", "my card rate"), ("assistant", answer)]
    talk.say("lost", drawn(3), pieces.append)
    assert [role for role, _ in said(talk)] == ["user", "assistant"] * 2
    talk.forget()
    assert said(talk) == []


def test_the_answer_hangs_on_what_was_said(talk):
    def asked(*questions):
        talk.forget()
        for question in questions:
            pieces = []
            talk.say(question, drawn(6), pieces.append)
        return "".join(pieces)

    assert asked("fee", "lost") == asked("fee", "lost")
    assert len({asked("fee", "lost"), asked("lost"), asked("bank loan", "lost")}) > 1


def test_the_next_turn_reads_what_is_new(released, monkeypatch):
    """And says what it would have said."""
    found = open_usable(released("llama", "instruction"), max_length=120)
    talk, forgetful = (Conversation.of(found, "my card is lost " * 4) for _ in range(2))
    forgetful.kept = PromptCache(0).of("conversation", "")
    rows = []
    own = RunningBatch.add
    monkeypatch.setattr(
        RunningBatch, "add", lambda self, new: (rows.extend(new), own(self, new))[1]
    )
    for question in ("fee", "lost rate", "bank"):
        for each in (talk, forgetful):
            each.say(question, Writing(8), lambda piece: None)
        assert said(talk) == said(forgetful)
    assert [row.reused for row in rows[1::2]] == [0, 0, 0]
    first, second, third = (row.reused for row in rows[::2])
    assert 0 == first < second < third
    talk.forget()
    assert talk.kept.cache.used_bytes == 0


def test_a_long_conversation_is_cut_in_front_and_told(talk):
    told = [talk.say("my card is lost", Writing(4), lambda piece: None) for _ in range(4)]
    assert not any("forgotten" in line for line in told[0])
    assert any("longer than 36 tokens: its first 2 turns" in line for line in told[3])
    assert len(said(talk)) < 8
    told = talk.say("card " * 60, Writing(4), lambda piece: None)
    assert any("the question is too long" in line for line in told)


def test_a_question_that_cannot_be_asked_changes_nothing(released):
    found = open_usable(released("llama", "instruction"), max_length=40)
    talk = Conversation.of(found, "be brief " * 20)
    before = said(talk)
    with pytest.raises(ConfigError, match="there is room for"):
        talk.say("my card", Writing(4), lambda piece: None)
    assert said(talk) == before
    talk.forget()
    assert said(talk) == before


def test_a_classifier_does_not_talk(released):
    with pytest.raises(ConfigError, match="labels texts and writes none"):
        Conversation.of(open_usable(released()))
