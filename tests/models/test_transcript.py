"""Pieces of text are whole characters, and hold nothing of what ended the text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedllm.models.transcript import Transcript

TEXT = "naïve 한국어 🙂🙃 é-clairs, 漢字 and more"
END = 256


@pytest.fixture(scope="module")
def by_bytes():
    """Each byte of UTF-8 is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


@pytest.fixture(scope="module")
def by_words():
    """Spaces between words stand in no token (WordPiece)."""
    words = ["play", "##ing", "card", ".", "##s", "lost", "[UNK]"]
    made = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


def pushed(tokenizer, tokens, stops=(), most=10_000, ends=(END,)):
    transcript = Transcript(tokenizer, ends, stops, most)
    return transcript, [transcript.push(token) for token in tokens]


def test_pieces_are_whole_characters(by_bytes):
    tokens = by_bytes(TEXT)["input_ids"]
    assert len(tokens) == len(TEXT.encode())
    transcript, pieces = pushed(by_bytes, [*tokens, END])
    assert "".join(pieces) == transcript.text == TEXT
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert "🙂" in pieces
    assert (transcript.finish, transcript.tokens) == ("stop", tokens)


def test_a_character_that_is_cut_off_is_left_out(by_bytes):
    tokens = by_bytes("ab🙂")["input_ids"]
    for cut in (1, 2, 3):
        transcript, pieces = pushed(by_bytes, tokens, most=len(tokens) - cut)
        assert ("".join(pieces), transcript.finish) == ("ab", "length")


def test_bytes_that_are_no_character_stop_nothing(by_bytes):
    broken = by_bytes("é")["input_ids"][:1] * 3
    transcript, _ = pushed(by_bytes, [*broken, *by_bytes("abc")["input_ids"], END])
    assert transcript.text.endswith("abc")


def test_spaces_that_stand_in_no_token_are_there(by_words):
    transcript, pieces = pushed(by_words, [0, 1, 2, 4, 3, 5], most=6)
    assert pieces == ["play", "ing", " card", "s", ".", " lost"]
    assert transcript.text == by_words.decode([0, 1, 2, 4, 3, 5])


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (("naï",), ""),
        (("🙂",), "naïve 한국어 "),
        (("more", "漢字"), "naïve 한국어 🙂🙃 é-clairs, "),
        (("🙃 é", "🙂🙃 x"), "naïve 한국어 🙂"),
        (("more!",), TEXT),
    ],
)
def test_a_stop_text_ends_it_wherever_tokens_end(by_bytes, stops, expected):
    tokens = by_bytes(TEXT)["input_ids"]
    transcript, pieces = pushed(by_bytes, [*tokens, END], stops)
    assert "".join(pieces) == transcript.text == expected
    assert transcript.finish == "stop"


def test_what_may_be_a_stop_text_waits_and_then_comes(by_bytes):
    tokens = by_bytes("a##b###c")["input_ids"]
    transcript, pieces = pushed(by_bytes, tokens, ("###",), most=8)
    assert pieces == ["a", "", "", "##b", "", "", "", ""]
    assert (transcript.text, transcript.finish) == ("a##b", "stop")


def test_what_waits_at_the_end_comes(by_bytes):
    _, pieces = pushed(by_bytes, [*by_bytes("ab#")["input_ids"], END], ("##",))
    assert "".join(pieces) == "ab#"


def test_after_the_end_nothing_comes(by_bytes):
    transcript, _ = pushed(by_bytes, [*by_bytes("ab")["input_ids"], END])
    assert transcript.push(by_bytes("c")["input_ids"][0]) == ""
    assert transcript.text == "ab"


@given(st.text(alphabet="ab#é🙂", max_size=30), st.lists(st.text("ab#é🙂", min_size=1, max_size=4)))
def test_it_is_the_text_up_to_the_first_stop(by_bytes, text, stops):
    _, pieces = pushed(by_bytes, [*by_bytes(text)["input_ids"], END], stops)
    expected = text
    # The first that is complete, which is not always the first that begins.
    for size in range(len(text) + 1):
        places = [text[:size].find(stop) for stop in stops if stop in text[:size]]
        if places:
            expected = text[: min(places)]
            break
    assert "".join(pieces) == expected
