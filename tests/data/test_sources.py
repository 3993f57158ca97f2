from __future__ import annotations

import csv
import gzip
import io
import json
import sys
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tasks import read_records

from fedllm.config import DataSection
from fedllm.data import sources
from fedllm.errors import DataError

PRIVATE = "Mrs Private has gout"

awkward = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
rows_of_texts = st.lists(st.tuples(awkward, awkward), min_size=1, max_size=8)
in_one_folder = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read(path: Path | str, task="classification", **keys):
    return read_records(str(path), DataSection(train=str(path), **keys), task)


def refusal(path: Path | str, task="classification", **keys) -> str:
    with pytest.raises(DataError) as caught:
        read(path, task, **keys)
    assert caught.value.remedy
    assert "Private" not in str(caught.value)
    return str(caught.value)


def json_lines(path: Path, rows: list) -> Path:
    content = "".join(
        (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
    ).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def comma_separated(path: Path, rows: list[list[str]]) -> Path:
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows(rows)
    content = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@given(rows_of_texts, st.booleans())
@in_one_folder
def test_json_lines_give_back_any_unicode(tmp_path, rows, escaped):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": p, "response": r}, ensure_ascii=escaped) + "\n" for p, r in rows]
    path.write_bytes("".join(lines).encode())
    records = read(path, "instruction")
    assert [(r.values["prompt"], r.values["response"]) for r in records] == rows


@given(rows_of_texts, st.booleans())
@in_one_folder
def test_csv_gives_back_any_unicode(tmp_path, rows, marked):
    path = comma_separated(tmp_path / "rows.csv", [["prompt", "response"], *map(list, rows)])
    if marked:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    records = read(path, "instruction")
    assert [(r.values["prompt"], r.values["response"]) for r in records] == rows


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "A.JSONL", "a.csv", "a.csv.gz"]
)
def test_formats_by_name_with_mapped_columns(tmp_path, name):
    rows = [
        {"note": "fever", "code": "7", "id": " p1 "},
        {"note": "cough", "code": "8", "id": "p2"},
    ]
    if ".csv" in name:
        table = [["note", "code", "id"], *[list(row.values()) for row in rows]]
        path = comma_separated(tmp_path / name, table)
    else:
        rows[0]["code"] = 7
        path = json_lines(tmp_path / name, rows)
    records = read(path, text="note", label="code", unit="id")
    assert [dict(r.values) for r in records] == [
        {"text": "fever", "label": "7"},
        {"text": "cough", "label": "8"},
    ]
    assert [r.unit for r in records] == ["p1", "p2"]
    first = 2 if ".csv" in name else 1
    assert [r.origin for r in records] == [f"{name}:{first}", f"{name}:{first + 1}"]


def test_parquet_reads_only_the_columns_it_needs(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = ["头痛", "two\nlines"]
    pq.write_table(pa.table({"text": texts, "label": [3, 4], "other": [b"x", None]}), path)
    records = read(path)
    assert [(r.values["text"], r.values["label"]) for r in records] == [
        ("头痛", "3"),
        ("two\nlines", "4"),
    ]
    assert records[1].origin == "a.parquet:2"
    assert "columns there: text, label, other" in refusal(path, text="txet")
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a whole Parquet file" in refusal(path)


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    said = refusal(tmp_path / "a.parquet")
    assert "pip install --constraint constraints.txt '.[parquet]'" in said
    assert "docs/operators/offline.md" in said
    # By its name pip would ask an index, where it may be something else.
    assert "fedllm[" not in said


def test_pattern_reads_files_in_sorted_order(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        json_lines(tmp_path / name / "x.jsonl", [{"text": f"from {name}"}])
    records = read(tmp_path / "*" / "x.jsonl", "causal")
    assert [r.values["text"] for r in records] == ["from a", "from b", "from c"]
    assert [r.origin for r in records] == ["a/x.jsonl:1", "b/x.jsonl:1", "c/x.jsonl:1"]
    assert "no file matches" in refusal(tmp_path / "*.jsonl", "causal")


def test_a_file_whose_name_looks_like_a_pattern_is_read(tmp_path):
    path = json_lines(tmp_path / "a[1].jsonl", [{"text": "x"}])
    assert len(read(path, "causal")) == 1


def test_missing_file_folder_unknown_format_and_permission(tmp_path):
    assert "there is no file" in refusal(tmp_path / "none.jsonl")


def test_how_far_the_path_of_a_missing_file_leads_is_said(tmp_path):
    (tmp_path / "records.csv").write_text("text,label\n")
    near = refusal(tmp_path / "record.csv")
    assert f"the folder {tmp_path} is there; did you mean 'records.csv'?" in near
    assert "put the file there" in refusal(tmp_path / "none.jsonl")
    lost = refusal(tmp_path / "clinic" / "2026" / "records.csv")
    assert f"there is no folder {tmp_path / 'clinic'};" in lost
    assert "FEDLLM_DATA" not in near, "which is no help to a site"
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "a.xlsx").write_bytes(b"x")
    assert ".jsonl, .jsonl.gz, .csv, .csv.gz or .parquet" in refusal(tmp_path / "a.xlsx")


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n"])
def test_source_without_rows_is_refused(tmp_path, content):
    path = tmp_path / "a.csv"
    path.write_text(content)
    assert "a.csv holds no rows" in refusal(path)


def test_one_empty_file_of_a_pattern_is_refused(tmp_path):
    json_lines(tmp_path / "a.jsonl", [{"text": "x"}])
    (tmp_path / "b.jsonl").touch()
    assert "b.jsonl holds no rows" in refusal(tmp_path / "*.jsonl", "causal")


def test_wrong_column_lists_those_there_and_the_nearest(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", [{"Question": PRIVATE, "answer": "x", "id": 1}])
    message = refusal(path, "instruction", prompt="question", response="answer")
    assert "has no column 'question'; columns there: Question, answer, id" in message
    assert "set data.prompt to one of the columns; did you mean 'Question'?" in message
    assert "no column 'hospital'" in refusal(
        path, "instruction", prompt="Question", response="answer", site="hospital"
    )


@pytest.mark.parametrize("row", [[PRIVATE + ", and a cough.", "x"], ["Private", "gout"]])
def test_row_in_place_of_a_header_is_not_quoted(tmp_path, row):
    path = comma_separated(tmp_path / "a.csv", [row, ["b", "c"]])
    message = refusal(path)
    assert "has no column 'text', nor one of a similar name, among its 2" in message
    assert "gout" not in message


def test_csv_header_with_one_similar_name_is_shown(tmp_path):
    path = comma_separated(tmp_path / "a.csv", [["Text", "kind"], ["b", "c"]])
    assert "columns there: Text, kind" in refusal(path)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_csv_with_another_separator_is_read(tmp_path, separator):
    path = tmp_path / "a.csv"
    path.write_text(f'text{separator}label\n"a{separator} b"{separator}d\n')
    assert dict(read(path)[0].values) == {"text": f"a{separator} b", "label": "d"}
    path.write_text(f"Txt{separator}label{separator}c,d\n")
    assert "columns there: Txt, label" in refusal(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"text,label\rPrivate,b\rc,d\r"),
        ("a.jsonl", b'{"text": "Private", "label": "b"}\r{"text": "c", "label": "d"}\r'),
    ],
)
def test_lines_that_end_in_cr_alone_are_explained(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(path)
    assert "its lines end in CR alone" in message
    assert "tr '\\r' '\\n'" in message


def test_a_bare_cr_in_a_csv_row_is_explained(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\na,b\nPrivate\rx,c\n")
    assert "put fields that hold a CR in double quotes" in refusal(path)


def test_a_repeated_key_refuses_the_row_if_it_is_read(tmp_path):
    twice = '{"text": "a", "label": "b", "text": "Private"}'
    path = json_lines(tmp_path / "a.jsonl", ['{"text": "a", "label": "b", "x": 1, "x": 2}', twice])
    assert "a.jsonl row 2 (line 2): has the key 'text' more than once" in refusal(path)


def test_parquet_values_that_cannot_be_read_are_named_by_row(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    bad = pa.array([b"good", b"Private caf\xe9", None]).cast(pa.binary())
    texts = pa.StringArray.from_buffers(3, bad.buffers()[1], bad.buffers()[2], bad.buffers()[0])
    years = pa.array([1, 2, 2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"text": texts, "label": ["a", "b", "c"], "year": years}), path)
    message = refusal(path)
    assert "a.parquet row 2: field 'text' is not UTF-8" in message
    assert "a.parquet row 3: field 'text' is null" in message
    message = refusal(path, label="year", text="label")
    assert "row 1: field 'year' is of type datetime" in message
    assert "row 3: field 'year' is of type timestamp[us]" in message


def test_parquet_columns_below_a_name_are_not_taken_for_it(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text.b": ["x"], "text": ["y"], "label": ["a"]}), path)
    assert dict(read(path)[0].values) == {"text": "y", "label": "a"}


@pytest.mark.parametrize("name", ["a" * 300 + ".csv", "a" * 5000, "a\ud800.csv", "*" + "a" * 300])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    refusal(tmp_path / name)


def test_data_in_a_package_is_refused_clearly():
    assert "only model.path may begin with package:" in refusal("package:somewhere/notes.csv")


def test_column_twice_is_refused(tmp_path):
    path = comma_separated(tmp_path / "a.csv", [["text", "label", "text"], ["a", "b", "c"]])
    assert "has 2 columns 'text'" in refusal(path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"label": "x"}, "field 'text' is missing"),
        ({"text": None, "label": "x"}, "field 'text' is null"),
        ({"text": "", "label": "x"}, "field 'text' is empty"),
        ({"text": " \t\u2003", "label": "x"}, "field 'text' is empty"),
        ({"text": [PRIVATE], "label": "x"}, "field 'text' is of type list, not text"),
        ({"text": 5, "label": "x"}, "field 'text' is of type int, not text"),
        ({"text": "a", "label": 1.5}, "field 'label' is of type float, not text or a whole number"),
        ({"text": "a", "label": True}, "field 'label' is of type bool"),
        ('{"text": "\\ud800 Private", "label": "x"}', "field 'text' is not valid Unicode"),
        ('{"text": "Private\\q", "label": "x"}', "is not valid JSON at character 18"),
        ('{"text": "Private"', "is not valid JSON"),
        ('["Private"]', "is not a JSON object"),
        ("[" * 100_000, "is JSON with a number too long or nested too deep"),
    ],
)
def test_bad_row_refuses_the_file_and_is_named(tmp_path, row, problem):
    good = {"text": "a", "label": "b"}
    path = json_lines(tmp_path / "a.jsonl", [good, "", row, good])
    message = refusal(path)
    assert "1 row cannot be used" in message
    assert f"a.jsonl row 2 (line 3): {problem}" in message


def test_bad_rows_of_all_files_are_counted_together(tmp_path):
    for name in ("a", "b"):
        json_lines(tmp_path / f"{name}.jsonl", [{"text": PRIVATE}, *[{"text": ""}] * 4])
    message = refusal(tmp_path / "*.jsonl", "causal")
    assert "8 rows cannot be used" in message
    assert "b.jsonl row 2 (line 2)" in message
    assert "and 3 more" in message


def test_csv_names_the_line_where_a_row_starts(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\n"two\nlines",x\n\n"Private\n",\na,b,Private\n')
    message = refusal(path)
    assert "2 rows cannot be used" in message
    assert "a.csv row 2 (line 5): field 'label' is empty" in message
    assert "a.csv row 3 (line 7): has 3 fields, the header has 2" in message


def test_csv_with_an_open_quote_does_not_swallow_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,b\n"Private,c\nd,e\n')
    assert "row that starts at line 3 is not valid CSV" in refusal(path)


def test_broken_gzip(tmp_path):
    path = json_lines(tmp_path / "a.jsonl.gz", [{"text": f"{PRIVATE} {i}"} for i in range(5000)])
    whole = path.read_bytes()
    for content in (whole[:-100], b"text", whole[:500] + b"\xff" * 100 + whole[600:]):
        path.write_bytes(content)
        assert "is not a whole gzip file" in refusal(path, "causal")


def test_wrong_encoding_names_the_line_and_the_remedy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"text": "Private"}\n{"text": "café"}\n'.encode("latin-1"))
    message = refusal(path, "causal")
    assert "line 2: byte 14 of the line is not UTF-8" in message
    assert "save the file as UTF-8" in message
    path.write_bytes('{"text": "Private"}\n'.encode("utf-16"))
    assert "the file is UTF-16" in refusal(path, "causal")
    path.write_bytes(gzip.compress(b'{"text": "Private"}\n'))
    assert "ending .gz" in refusal(path, "causal")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("text,label\n".encode("utf-16-le"), "the file is UTF-16"),
        ("text,label\n".encode("utf-16-be"), "the file is UTF-16"),
        (b"PK\x03\x04\x14\xff", "zip archive or a spreadsheet"),
        (b"\xfd7zXZ\x00", "packed with xz"),
        (b"PAR1\x15\xff", "ending .parquet"),
    ],
)
def test_what_is_no_text_is_recognised(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    message = refusal(tmp_path / "a.csv")
    assert words in message
    assert "a.csv line 1" in message


def test_json_array_is_recognised(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"text": PRIVATE}], indent=1))
    assert "JSON array, not JSON Lines" in refusal(path, "causal")


def test_public_test_file_may_lack_unit_and_site(tmp_path):
    test = str(json_lines(tmp_path / "test.jsonl", [{"text": "a", "site": "x"}] * 20))
    data = DataSection(train="train.jsonl", test=test, unit="person", site="site")
    records = read_records(test, data, "causal")
    assert len(records) == 20
    assert (records[0].unit, records[0].site) == (None, "x")
    assert "no column 'person'" in refusal(test, "causal", unit="person")
    by_person = data.model_copy(update={"unit": "site"})
    assert len(read_records(test, by_person, "causal")) == 20


def test_what_a_training_record_is_of_may_be_empty_and_its_column_must_be_there(tmp_path):
    rows = [{"text": "a", "tongue": tongue} for tongue in ("german", " french ", 7, None, "", "  ")]
    path = json_lines(tmp_path / "a.jsonl", [*rows, {"text": "b"}])
    found = [record.group for record in read(path, "causal", group="tongue")]
    assert found == ["german", "french", "7", None, None, None, None]
    assert {record.group for record in read(path, "causal")} == {None}
    assert "no column 'tung'" in refusal(path, "causal", group="tung")
    assert "set data.group" in refusal(path, "causal", group="tung")
    bad = json_lines(tmp_path / "b.jsonl", [{"text": "a", "tongue": 0.5}])
    assert "field 'tongue' is of type float" in refusal(bad, "causal", group="tongue")
    table = comma_separated(tmp_path / "a.csv", [["text", "tongue"], ["a", ""], ["b", "german"]])
    assert [r.group for r in read(table, "causal", group="tongue")] == [None, "german"]
    # A public test file has its own way, and is asked elsewhere.
    data = DataSection(train="train.jsonl", test=str(bad), group="tongue")
    assert read_records(str(bad), data, "causal")[0].group is None


def test_training_records_of_a_person_are_capped(tmp_path):
    rows = [{"text": f"note {i}", "person": i % 2} for i in range(20)]
    path = json_lines(tmp_path / "a.jsonl", rows)
    records = read(path, "causal", unit="person", max_records_per_unit=3)
    assert sorted(r.unit for r in records) == ["0"] * 3 + ["1"] * 3
    assert len(read(path, "causal", max_records_per_unit=3)) == 20


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map(
    lambda text: "x" + text.replace("\0", "")
)


@given(NAMES, st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]), st.data())
def test_a_person_in_two_forms_of_unicode_is_one_person(name, form, data):
    other = unicodedata.normalize(form, name)
    place = data.draw(st.integers(0, len(other)))
    other = f" {other[:place]}\u200b{other[place:]}\t"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "visits.jsonl"
        rows = [{"text": str(i), "who": (name, other)[i % 2]} for i in range(6)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        records = read(path, "causal", unit="who", max_records_per_unit=4)
    assert len({record.unit for record in records}) == 1
    assert len(records) == 4, "the most that is kept of one person"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Zoë Müller", "ZOË MÜLLER"),
        ("Zoë", "\uff3ao\u0065\u0308"),
        ("1042", "\uff11\uff10\uff14\uff12"),
        ("Strauß", "STRAUSS"),
        ("Li  Na", "Li\u00a0Na"),
    ],
)
def test_width_case_and_spaces_make_no_other_person(tmp_path, one, other):
    path = json_lines(
        tmp_path / "a.jsonl", [{"text": "a", "who": one}, {"text": "b", "who": other}]
    )
    assert len({record.unit for record in read(path, "causal", unit="who")}) == 1


def test_other_persons_stay_other_persons(tmp_path):
    rows = [{"text": name, "who": name} for name in ("Zoe", "Zoë", "Zoé", "Zo", "1", "12", "l2")]
    path = json_lines(tmp_path / "a.jsonl", rows)
    assert len({record.unit for record in read(path, "causal", unit="who")}) == len(rows)


def test_a_name_that_nobody_can_see_is_no_person(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", [{"text": "a", "who": "\u200b \u2060"}])
    assert "'who' is empty" in refusal(path, "causal", unit="who")


def test_records_are_read_by_the_name_of_a_task(tmp_path):
    path = json_lines(tmp_path / "a.jsonl", [{"text": "a", "label": "one"}])
    data = DataSection(train=str(path))
    for task in ("classification", "causal"):
        assert sources.read_records(str(path), data, task) == read(path, task)


def test_all_columns_that_look_like_the_missing_one_are_named(tmp_path):
    path = comma_separated(tmp_path / "a.csv", [["text", "label", "label_name"], ["a", "1", "b"]])
    message = refusal(path, label="labell")
    assert "did you mean 'label' or 'label_name'?" in message
    assert message.lower().count("did you mean") == 1
