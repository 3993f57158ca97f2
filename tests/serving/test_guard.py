"""What looks like a number of a person is masked, in pieces as in one."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.errors import ConfigError
from fedllm.serving.guard import Guard, read_guard

# Numbers that their issuers give as examples.
FOUND = {
    "card": ["4111 1111 1111 1111", "5500-0055-5555-5559", "378282246310005", "4222222222222"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82WEST12345698765432", "NL91ABNA0417164300"],
    "email": ["a.b+c@example.org", "x_y@mail.example.co.uk"],
    "phone": ["+49 30 901820", "+1 (212) 555-0123", "030/901820", "(212) 555-0123", "0171 2345678"],
    "us_ssn": ["078-05-1120"],
    "uk_nhs": ["943 476 5919", "9434765919"],
    "uk_nino": ["QQ 12 34 56 C".replace("QQ", "AB")],
    "cn_resident": ["11010519491231002X"],
    "fr_insee": ["2 55 08 14 168 025 38"],
    "es_dni": ["12345678Z", "X1234567L"],
}
LEFT = [
    "4111 1111 1111 1112",
    "GB82WEST12345698765433",
    "666-12-3456",
    "943 476 5918 is no number of a patient",
    "12345678A",
    "in 2019 and 2020, 37.5 of 100",
    "at 10:30 on 2024-07-26",
    "a @ b, x@y",
    "version 1.2.3.4 of 1234",
    "",
]


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in FOUND.items() for t in texts])
@pytest.mark.parametrize("around", ["{}", "It is {}.", "({}), 是{}。", "{}\n{}"])
def test_numbers_are_masked(name, text, around):
    masked, found = Guard().mask(around.replace("{}", text))
    assert masked == around.replace("{}", f"[{name}]")
    assert found == {name: around.count("{}")}


# Numbers with what looks as if they went on, in words of the text that is left of them.
BEHIND = [
    ("4111 1111 1111 1111 12/27", "[card] 12/27"),
    ("4111111111111111 123", "[card] 123"),
    ("4111-1111-1111-1111 12-2027", "[card] 12-2027"),
    ("4111 1111 1111 1111 12 2027", "[card] 12 2027"),
    ("4111 1111 1111 1111 1", "[card] 1"),
    ("DE89370400440532013000 BIC COBADEFF370", "[iban] BIC COBADEFF370"),
    ("DE89 3704 0044 0532 0130 00 EUR 500", "[iban] EUR 500"),
    ("GB82WEST12345698765432 AMOUNT 12", "[iban] AMOUNT 12"),
]


@pytest.mark.parametrize(("text", "wanted"), BEHIND)
def test_what_stands_behind_a_number_hides_it_not(text, wanted):
    assert Guard().mask(text)[0] == wanted
    stream = Guard().stream()
    assert "".join([*map(stream.push, text), stream.end()]) == wanted


def test_a_number_ends_at_a_border_alone():
    """No part of a longer number is one: each start is tried at some borders, and no more."""
    assert Guard().mask("41111111111111112")[0] == "41111111111111112"
    tried = []
    card = next(p for p in Guard().patterns if p.name == "card")
    counting = replace(card, valid=lambda plain: tried.append(plain) or False)
    Guard((counting,)).mask("1 " * 500)
    # The last are looked at twice, for more may follow them.
    assert len(tried) <= (500 + 64) * 7


@pytest.mark.parametrize("text", LEFT)
def test_other_numbers_are_left(text):
    masked, found = Guard().mask(text)
    if "943" in text:
        # A telephone number it may be.
        assert "uk_nhs" not in found
    else:
        assert (masked, dict(found)) == (text, {})


parts = st.sampled_from(
    [t for texts in FOUND.values() for t in texts]
    + LEFT
    + [t for t, _ in BEHIND]
    + [" ", "1", "@", "12", "-", "é漢", ". "]
)


@given(st.lists(parts, max_size=8), st.lists(st.integers(0, 120), max_size=12))
def test_pieces_are_masked_as_the_whole(texts, cuts):
    text = "".join(texts)
    whole, counted = Guard().mask(text)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    stream = Guard().stream()
    pieces = [stream.push(text[a:b]) for a, b in pairwise(places)]
    assert "".join([*pieces, stream.end()]) == whole
    assert stream.found == counted


@given(st.lists(parts, max_size=8))
def test_letter_by_letter_is_masked_as_the_whole(texts):
    text = "".join(texts)
    stream = Guard().stream()
    assert "".join([*map(stream.push, text), stream.end()]) == Guard().mask(text)[0]


def test_text_does_not_wait_longer_than_it_must():
    stream = Guard().stream()
    assert stream.push("a b " * 100) == "a b " * 84
    assert stream.push("漢" * 100).endswith("漢" * 36)
    assert len(stream.push("x" * 1000)) > 500


def test_operators_have_patterns_of_their_own(tmp_path):
    path = tmp_path / "guard.toml"
    path.write_text('[patterns]\nward = "W-[0-9]{4}"\n')
    guard = read_guard(path)
    assert guard.mask("in W-1234, card 4111111111111111")[0] == "in [ward], card [card]"
    assert read_guard(None) == Guard()
    stream = guard.stream()
    assert "".join([*map(stream.push, "x W-1234 y"), stream.end()]) == "x [ward] y"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[patterns]\n",
        '[patterns]\nward = "("\n',
        '[patterns]\nward = ""\n',
        '[patterns]\nward = "x*"\n',
        "[patterns]\nward = 7\n",
        '[patterns]\n"Ward 7" = "x"\n',
    ],
)
def test_patterns_without_a_meaning_are_refused(text, tmp_path):
    path = tmp_path / "guard.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"guard\.toml"):
        read_guard(path)
