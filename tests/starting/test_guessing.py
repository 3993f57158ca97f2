"""Columns are found by what they hold and are called, in every order, and no value is shown."""

from __future__ import annotations

import datetime
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.errors import FedllmError
from fedllm.starting.checking import check_usable
from fedllm.starting.guessing import guess
from fedllm.starting.looking import Sample, Source
from fedllm.starting.profiles import profile, profiles_of

WORDS = [
    "my",
    "card",
    "was",
    "lost",
    "and",
    "the",
    "bank",
    "never",
    "answered",
    "so",
    "please",
    "send",
    "another",
    "one",
    "soon",
]
ROWS = 120


def sentence(number: int, salt: str = "") -> str:
    draw = random.Random(f"{salt}{number}")
    return " ".join(draw.choices(WORDS, k=9)) + f" {number}"


COLUMNS = {
    "text": sentence,
    "other_text": lambda i: sentence(i, "x")[:30],
    "label": lambda i: ["lost", "late", "fees"][i % 3],
    "date": lambda i: f"2024-0{1 + i % 3}-1{i % 9}",
    "amount": lambda i: f"{i * 1.37:.2f}",
    "row": lambda i: f"T-{i:05}",
    "person": lambda i: f"P{i // 2:04}",
    "place": lambda i: ["North", "South"][i % 2],
    "nothing": lambda i: None,
}


def made(named: dict[str, str], order: list[str] | None = None) -> dict:
    """Profiles of columns: what they hold, by the names that they bear."""
    names = order or list(named)
    rows = [{name: COLUMNS[named[name]](i) for name in names} for i in range(ROWS)]
    return profiles_of(names, rows)


@given(
    order=st.permutations(["a", "b", "c", "d", "e"]),
    label=st.sampled_from(["intent", "Category", "klasse", "label_name", "zzz"]),
)
@settings(max_examples=25)
def test_a_classification_is_found_whatever_the_order(order, label):
    named = {"a": "text", "b": "date", "c": "amount", "d": "row", "e": "nothing", label: "label"}
    found = guess(made(named, [*order, label]))
    assert (found.task, dict(found.columns)) == ("classification", {"text": "a", "label": label})
    assert (found.unit, found.site) == (None, None)
    assert bool(found.doubts) == (label == "zzz")


@given(
    unit=st.sampled_from(["patient", "patient_id", "customerNo", "KUNDE", "用户编号", "mrn"]),
    site=st.sampled_from(["hospital", "bank_name", "Klinik", "site"]),
)
@settings(max_examples=15)
def test_persons_and_places_are_found_by_their_names(unit, site):
    found = guess(made({"note": "text", unit: "person", site: "place", "ward": "label"}))
    assert (found.unit, found.site) == (unit, site)
    assert dict(found.columns) == {"text": "note", "label": "ward"}


def test_a_number_that_comes_back_is_doubted_and_not_taken():
    found = guess(made({"note": "text", "zz": "person", "ward": "label"}))
    assert found.unit is None
    assert any("'zz'" in doubt and "--unit zz" in doubt for doubt in found.doubts)


def test_a_client_of_a_few_is_no_person():
    found = guess(made({"note": "text", "client": "place", "ward": "label"}))
    assert found.unit is None
    assert any("--unit client" in doubt for doubt in found.doubts)
    rows = {"note": "text", "client": "place", "ward": "label"}
    assert guess(made(rows), given={"unit": "client"}).unit == "client"


@pytest.mark.parametrize(
    ("named", "task", "roles"),
    [
        ({"question": "text", "answer": "other_text"}, "instruction", {"prompt", "response"}),
        ({"问题": "text", "回答": "other_text"}, "instruction", {"prompt", "response"}),
        ({"body": "text"}, "causal", {"text"}),
        (
            {"prompt": "text", "chosen": "other_text", "rejected": "text"},
            "preference",
            {"prompt", "chosen", "rejected"},
        ),
        ({"question": "text", "label": "label"}, "classification", {"text", "label"}),
        ({"message": "text", "date": "date", "amount": "amount"}, "causal", {"text"}),
    ],
)
def test_the_task_follows_from_the_columns(named, task, roles):
    found = guess(made(named))
    assert (found.task, set(found.columns)) == (task, roles)


def test_spans_and_ranked_answers_are_known_by_their_lists():
    spans = json.dumps([{"start": 0, "end": 2, "label": "NAME"}])
    rows = [{"text": sentence(i), "x": spans if i % 2 else "[]"} for i in range(30)]
    found = guess(profiles_of(["text", "x"], rows))
    assert (found.task, dict(found.columns)) == (
        "token_classification",
        {"text": "text", "spans": "x"},
    )
    rows = [
        {"prompt": sentence(i), "answers": [sentence(i, "a"), "No."], "ranks": [1, 2]}
        for i in range(30)
    ]
    found = guess(profiles_of(["prompt", "answers", "ranks"], rows))
    assert (found.task, set(found.columns)) == ("preference", {"prompt", "answers", "ranks"})


def test_where_nothing_is_text_the_columns_are_told_and_no_value():
    with pytest.raises(FedllmError) as caught:
        guess(made({"a": "date", "b": "amount", "c": "row"}))
    assert "'a' (date)" in str(caught.value)
    assert "T-00001" not in str(caught.value)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=30),
    st.dates(),
    st.lists(st.one_of(st.text(max_size=3), st.integers(), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from(["[", "[]", '[{"start":1}]', "1,5", "\ud800", "2024-01-01"]),
)


@pytest.mark.parametrize(
    "value", [lambda i: f"code {i}", lambda i: f"2025-01-{1 + i % 28:02d}"], ids=["codes", "dates"]
)
def test_what_is_called_a_label_is_taken_for_one_so_that_its_refusal_names_it(value):
    rows = [{"text": f"words of row {i} and more", "label": value(i)} for i in range(60)]
    found = guess(profiles_of(["text", "label"], rows))
    assert (found.task, found.columns["label"]) == ("classification", "label")


@given(
    rows=st.lists(st.fixed_dictionaries({"a": ANYTHING, "b": ANYTHING}), min_size=1, max_size=30)
)
@settings(max_examples=60)
def test_any_rows_are_guessed_or_refused(rows):
    profiles = profiles_of(["a", "b"], rows)
    sample = Sample(Source("x.jsonl"), ("a", "b"), tuple(rows), True, len(rows))
    try:
        found = guess(profiles)
        check_usable(found, sample, profiles)
    except FedllmError as error:
        assert error.remedy
    else:
        assert set(found.columns.values()) <= {"a", "b"}


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        (["2024-01-02", "3.4.2021", "12/31/99"], "date"),
        ([datetime.date(2024, 1, 2)], "date"),
        (["1", "-2", "30"], "whole number"),
        (["1", "2.5", "3,5"], "number"),
        ([1.5, 2], "number"),
        ([True, False], "boolean"),
        (["a1b2c3", "x-9"], "identifier"),
        (["yes", "no", "yes"], "name"),
        ([sentence(1), sentence(2)], "text"),
        (["我昨天丢失了银行卡请帮助我", "转账为什么还没有到账请查询"], "text"),
        (["患者第1次就诊主诉头痛三天", "患者第2次就诊主诉头痛四天"], "text"),
        (["患者0001", "患者0002"], "identifier"),
        ([None, " ", ""], "nothing"),
        ([["a", "b"]], "texts"),
        (["[1, 2]", "[2, 1.5]"], "numbers"),
        ([{"a": 1}], "something else"),
        ([*["1"] * 99, "n/a"], "whole number"),
    ],
)
def test_what_a_column_holds(values, holds):
    assert profile("c", values).holds == holds
