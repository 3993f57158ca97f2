from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.config import DataSection
from fedllm.data.labels import _one_edit, check_distinct, doubts, nearest
from fedllm.data.records import Record
from fedllm.errors import DataError
from fedllm.tasks.classification import Classification

ONE_TO_THE_EYE = [
    ("refund", "refund ", "white space alone"),
    ("lost card", "lost\N{NO-BREAK SPACE}card", "white space alone"),
    ("lost card", "lost  card", "white space alone"),
    (
        "cafe\N{COMBINING ACUTE ACCENT}",
        "caf\N{LATIN SMALL LETTER E WITH ACUTE}",
        "two normal forms",
    ),
    ("refund", "re\N{ZERO WIDTH SPACE}fund", "look the same"),
]
ONE_TO_THE_EAR = [
    ("Refund", "refund", "upper and lower case"),
    ("STRASSE", "stra\N{LATIN SMALL LETTER SHARP S}e", "upper and lower case"),
    ("x2", "x\N{SUPERSCRIPT TWO}", "variants of the same characters"),
    ("\N{LATIN SMALL LIGATURE FI}ne", "fine", "variants of the same characters|case"),
]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize(("one", "other", "words"), ONE_TO_THE_EYE)
def test_labels_that_nobody_can_tell_apart_are_refused(one, other, words, listed):
    with pytest.raises(DataError, match=words) as caught:
        check_distinct(["x", one, other], "test.csv", listed=listed)
    assert caught.value.message.isascii()
    assert caught.value.message.startswith("test.csv: the labels ")


@pytest.mark.parametrize(("one", "other", "words"), ONE_TO_THE_EAR)
def test_labels_that_differ_in_case_or_variants_must_be_listed(one, other, words):
    with pytest.raises(DataError, match=words) as caught:
        check_distinct([one, other], "test.csv", listed=False)
    assert "list both in data.labels" in caught.value.remedy
    check_distinct([one, other], "data.labels", listed=True)


def test_the_public_set_is_checked():
    records = [Record({"text": "x", "label": label}, None, None, "t:1") for label in ("a", "a ")]
    with pytest.raises(DataError, match=r"test\.csv: the labels 'a' and 'a ' differ by white"):
        Classification().labels(DataSection(train="x", test="test.csv"), records)
    with pytest.raises(DataError, match=r"data\.labels: the labels"):
        Classification().labels(DataSection(train="x", labels=("a", "a ")), [])
    assert Classification().labels(DataSection(train="x", labels=("a", "A")), []) == ("a", "A")


@pytest.mark.parametrize(
    ("label", "near"),
    [
        ("Lost_Card", "lost_card"),
        ("lost card ", "lost_card"),
        ("lst_card", "lost_card"),
        ("refnud", "refund"),
        ("diabetes", None),
        ("lost_card" * 100, None),
        ("", None),
    ],
)
def test_the_nearest_label_is_named_and_no_far_one(label, near):
    assert nearest(label, ("refund", "lost_card", "card_lost")) == near


@pytest.mark.parametrize(
    ("counts", "pairs"),
    [
        ({"refund": 9, "Refund": 9}, [("Refund", "refund")]),
        ({"lost card": 9, "lost  card": 1}, [("lost card", "lost  card")]),
        ({"Süd": 9, "süd ": 1}, [("Süd", "süd ")]),
        ({"refund": 30, "refnd": 3}, [("refund", "refnd")]),
        ({"refund": 30, "reffund": 3}, [("refund", "reffund")]),
        ({"refund": 30, "refumd": 3}, [("refund", "refumd")]),
        ({"refund": 30, "refudn": 3}, [("refund", "refudn")]),
        ({"refund": 30, "refunds": 4}, []),
        ({"refund": 30, "befumd": 1}, []),
        ({"I10": 30, "I11": 1, "case-10": 50, "case-11": 2}, []),
        ({"yes": 30, "yet": 1}, []),
    ],
)
def test_labels_that_may_be_one(counts, pairs):
    found = [doubt.found for doubt in doubts(counts) if "may be one" in doubt.found]
    shown = [f"{a!r} ({counts[a]}) and {b!r} ({counts[b]})" for a, b in pairs]
    assert found == ([f"labels that may be one (and their records): {shown[0]}"] if shown else [])


def test_what_is_hidden_in_a_label_is_shown_as_an_escape():
    (doubt,) = doubts({"refund": 9, "re\N{ZERO WIDTH SPACE}fund": 9})
    assert "re\\u200bfund" in doubt.found


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_one_edit_is_what_the_definition_says(one, other):
    edits = {one[:i] + one[i + 1 :] for i in range(len(one))}
    edits |= {one[:i] + c + one[i:] for i in range(len(one) + 1) for c in "abc"}
    edits |= {one[:i] + c + one[i + 1 :] for i in range(len(one)) for c in "abc"}
    edits |= {one[:i] + one[i + 1] + one[i] + one[i + 2 :] for i in range(len(one) - 1)}
    assert _one_edit(one, other) == (other in edits | {one})
