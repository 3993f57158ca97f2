from __future__ import annotations

import pytest

from fedllm.config import DataSection
from fedllm.data.labels import check_distinct, nearest
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
