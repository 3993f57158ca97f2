from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.data.records import Record, RowProblems, cap_records_per_unit
from fedllm.errors import DataError

texts = st.text(st.characters(exclude_categories=["Cs"]))


def visit(text: str, unit: str | None) -> Record:
    return Record({"text": text}, unit, None, "visits.csv:2")


def test_repr_shows_the_origin_and_nothing_private():
    record = Record({"text": "has gout"}, "patient 7", "ward 3", "notes.jsonl:9")
    assert repr(record) == "Record(origin='notes.jsonl:9')"


def test_canonical_depends_on_values_alone():
    one = Record({"text": "a", "label": "b"}, "u", "s", "x:1")
    same = Record({"label": "b", "text": "a"}, None, None, "y:2")
    assert one.canonical() == same.canonical() == b'{"label":"b","text":"a"}'


@given(st.tuples(texts, texts), st.tuples(texts, texts))
def test_canonical_tells_different_values_apart(one, other):
    def canonical(pair):
        return Record({"prompt": pair[0], "response": pair[1]}, None, None, "x:1").canonical()

    assert (canonical(one) == canonical(other)) == (one == other)


def test_cap_keeps_the_same_records_whatever_the_order_of_the_file():
    records = [visit(f"note {i}", f"p{i % 3}") for i in range(30)]
    kept = cap_records_per_unit(records, 4)
    assert [sum(r.unit == f"p{i}" for r in kept) for i in range(3)] == [4, 4, 4]
    assert kept == [r for r in records if r in kept]
    shuffled = random.Random(1).sample(records, len(records))
    assert {r.values["text"] for r in cap_records_per_unit(shuffled, 4)} == {
        r.values["text"] for r in kept
    }
    others_gone = [r for r in records if r.unit == "p1"]
    assert cap_records_per_unit(others_gone, 4) == [r for r in kept if r.unit == "p1"]


def test_cap_leaves_small_units_and_records_without_a_unit_alone():
    records = [visit("same", "p")] * 3 + [visit(str(i), None) for i in range(9)]
    assert cap_records_per_unit(records, 3) == records
    assert len(cap_records_per_unit(records, 2)) == 11


def test_problems_show_five_rows_and_count_all():
    problems = RowProblems()
    problems.raise_if_any()
    for row in range(1, 8):
        problems.add(f"a.csv row {row}", "field 'text' is empty", "mend it")
    with pytest.raises(DataError) as caught:
        problems.raise_if_any()
    lines = caught.value.message.splitlines()
    assert lines[0] == "7 rows cannot be used:"
    assert lines[1] == "  a.csv row 1: field 'text' is empty"
    assert len(lines) == 7
    assert lines[-1] == "  and 2 more"
    assert caught.value.remedy == "mend it"
