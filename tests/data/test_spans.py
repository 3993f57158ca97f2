"""Spans are read as hospitals have them, in one form, and refused with the place and a remedy."""

from __future__ import annotations

import csv
import json
import sqlite3

import pytest
from support.tasks import read_records

from fedllm.config import DataSection
from fedllm.data.spans import Span, read_back, spans_value, written
from fedllm.data.values import BadValueError
from fedllm.errors import DataError

TEXT = "Frau Müller 🤒 und Herr Özdil"
MUELLER = {"start": 5, "end": 11, "label": "NAME"}
OEZDIL = {"start": 23, "end": 28, "label": "NAME"}
BAD = {
    "is not a list": {"NAME": 1},
    "is not valid JSON": "[{]",
    "span 1 is not an object": [[5, 11, "NAME"]],
    "span 1 has no 'start'": [{"end": 3, "label": "x"}],
    "span 2 has no 'end'": [MUELLER, {"start": 23, "label": "x"}],
    "span 1 has no 'label'": [{"start": 0, "end": 3}],
    "'start' is not a whole number": [{**MUELLER, "start": True}],
    "'end' is not a whole number": [{**MUELLER, "end": 11.0}],
    "ends where it starts": [{**MUELLER, "end": 5}],
    "ends where it starts, or before": [{**MUELLER, "end": 4}],
    "is not within": [{**MUELLER, "start": -1}],
    "is not within the text": [{**OEZDIL, "end": len(TEXT) + 1}],
    "two spans overlap": [OEZDIL, MUELLER, {"start": 10, "end": 12, "label": "NAME"}],
    "spans overlap": [MUELLER, MUELLER],
    "has a label that is no text": [{**MUELLER, "label": 3}],
    "or an empty one": [{**MUELLER, "label": " "}],
    "lone surrogate": [{**MUELLER, "label": "\ud800"}],
    "has the key 'end' more than once": '[{"start": 5, "end": 11, "end": 12, "label": "x"}]',
}


def read(path, **keys):
    return read_records(str(path), DataSection(train=str(path), **keys), "token_classification")


def test_places_count_code_points_and_stand_from_the_left():
    assert TEXT[5:11] == "Müller"
    assert TEXT[23:28] == "Özdil"
    found = spans_value([OEZDIL, {**MUELLER, "id": 7}], "spans", TEXT)
    assert read_back(found) == [Span(5, 11, "NAME"), Span(23, 28, "NAME")]
    assert spans_value(found, "spans", TEXT) == found == written(read_back(found))
    assert spans_value([], "spans", TEXT) == spans_value(" [ ] ", "spans", TEXT) == "[]"
    # Next to each other, and the whole text.
    whole = [{"start": 0, "end": 5, "label": "a"}, {"start": 5, "end": len(TEXT), "label": "b"}]
    assert len(read_back(spans_value(whole, "spans", TEXT))) == 2


@pytest.mark.parametrize("problem", BAD)
def test_what_is_wrong_is_told_without_a_value(problem):
    with pytest.raises(BadValueError) as caught:
        spans_value(BAD[problem], "marks", TEXT)
    assert problem in str(caught.value)
    assert "field 'marks'" in str(caught.value)
    assert "NAME" not in str(caught.value)
    assert not any(digit in str(caught.value).replace("span 1", "") for digit in "345678")


def test_all_formats_give_the_same_records(tmp_path):
    rows = [(TEXT, [OEZDIL, MUELLER]), ("no name here", [])]
    listed = tmp_path / "a.jsonl"
    listed.write_text("".join(json.dumps({"text": t, "spans": s}) + "\n" for t, s in rows))
    as_text = tmp_path / "b.jsonl"
    as_text.write_text(
        "".join(json.dumps({"text": t, "spans": json.dumps(s)}) + "\n" for t, s in rows)
    )
    table = tmp_path / "c.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "spans"), *((t, json.dumps(s)) for t, s in rows)])
    database = tmp_path / "d.sqlite"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE visits (text TEXT, spans TEXT)")
        given = [(text, json.dumps(spans)) for text, spans in rows]
        connection.executemany("INSERT INTO visits VALUES (?, ?)", given)
    query = "SELECT text, spans FROM visits"
    wanted = [dict(record.values) for record in read(listed)]
    assert [len(read_back(values["spans"])) for values in wanted] == [2, 0]
    for path in (as_text, table):
        assert [dict(record.values) for record in read(path)] == wanted
    found = read(f"sqlite:///{database}", query=query)
    assert [dict(record.values) for record in found] == wanted


def test_parquet_holds_spans_as_lists_or_as_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name, spans in {"lists": [MUELLER], "text": json.dumps([MUELLER])}.items():
        path = tmp_path / f"{name}.parquet"
        parquet.write_table(pyarrow.table({"text": [TEXT], "spans": [spans]}), path)
        (record,) = read(path)
        assert read_back(record.values["spans"]) == [Span(5, 11, "NAME")]


def test_a_source_with_bad_spans_is_refused_by_row_field_and_remedy(tmp_path):
    path = tmp_path / "visits.jsonl"
    rows = [[MUELLER], [{**MUELLER, "end": 99}], None, "x"]
    path.write_text("\n\n".join(json.dumps({"text": TEXT, "names": s}) for s in rows) + "\n")
    with pytest.raises(DataError) as caught:
        read(path, spans="names")
    assert caught.value.message.splitlines() == [
        "3 rows cannot be used:",
        "  visits.jsonl row 2 (line 3): field 'names': span 1 is not within the text",
        "  visits.jsonl row 3 (line 5): field 'names' is null",
        "  visits.jsonl row 4 (line 7): field 'names' is not valid JSON",
    ]
    assert '[{"start": 0, "end": 4, "label": "NAME"}]' in caught.value.remedy


def test_a_key_that_a_line_repeats_within_a_span_is_seen(tmp_path):
    path = tmp_path / "visits.jsonl"
    path.write_text('{"text": "Anna", "spans": [{"start": 0, "end": 1, "end": 4, "label": "x"}]}\n')
    with pytest.raises(DataError, match="has the key 'end' more than once"):
        read(path)
