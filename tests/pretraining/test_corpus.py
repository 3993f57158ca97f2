"""Reading documents, and refusing files that are not as declared."""

import gzip

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedllm.errors import ConfigError, DataError
from fedllm.pretraining.corpus import Document, read_documents


def texts(location, text="text") -> list[str]:
    return [d.text for d in read_documents(str(location), text)]


def test_json_lines_plain_and_compressed(tmp_path):
    rows = '{"text": "one"}\n\n{"text": "  "}\n{"text": "two"}\n'
    (tmp_path / "a.jsonl").write_text(rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.write(rows)
    assert texts(tmp_path / "*.jsonl*") == ["one", "two", "one", "two"]
    assert [d.origin for d in read_documents(str(tmp_path / "a.jsonl"), "text")] == [
        "a.jsonl:1",
        "a.jsonl:4",
    ]


def test_a_template_joins_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"q": "why {x}?", "a": "so"}\n')
    assert texts(tmp_path / "a.jsonl", "<|user|>{q}<|assistant|>{a}<|end|>") == [
        "<|user|>why {x}?<|assistant|>so<|end|>"
    ]


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["one", "two"], "other": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["one", "two"]
    with pytest.raises(DataError, match=r"a.parquet has no column 'missing'; .* text, other"):
        texts(tmp_path / "a.parquet", "missing")
    (tmp_path / "b.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"b.parquet is not a whole Parquet file"):
        texts(tmp_path / "b.parquet")


def test_a_long_text_file_is_cut_at_line_ends(tmp_path):
    line = "x" * 999 + "\n"
    (tmp_path / "a.txt").write_text(line * 2500)
    pieces = texts(tmp_path / "a.txt")
    assert len(pieces) == 3
    assert "".join(pieces) == line * 2500
    assert all(p.endswith("\n") for p in pieces)


@pytest.mark.parametrize(
    ("name", "content", "text", "message"),
    [
        ("a.jsonl", b'{"text": 3}\n', "text", r"row 1 \(line 1\): field 'text' is of type int"),
        ("a.jsonl", b'{"a": "b"}\n', "text", r"has no column 'text'; columns there: a"),
        ("a.jsonl", b'{"q": "b"}\n', "{q}{a}", r"set data.text \(column 2 of it\)"),
        ("a.jsonl", b'{"text": "a"}\n{"te', "text", r"row 2 \(line 2\) is not valid JSON"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "text", r"row 1 .* 'text' more than once"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "text", r"row 1 .* nested too deep"),
        ("a.jsonl", b'{"text": "\\ud800"}', "text", r"field 'text' is not valid Unicode"),
        ("a.jsonl", b"[1]\n", "text", r"a.jsonl holds a JSON array"),
        ("a.jsonl", b"1\n", "text", r"row 1 \(line 1\) is not a JSON object"),
        ("a.jsonl", b"\xff\xfe\n", "text", "the file is UTF-16"),
        ("a.jsonl.gz", b"not gzip", "text", "is not a whole gzip file"),
        ("a.txt", b"fine\ncaf\xe9\n", "text", "a.txt line 2: byte 4 of the line is not UTF-8"),
        ("a.doc", b"", "text", "does not tell its format"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, text, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name, text)


def test_a_missing_file_and_a_broken_template(tmp_path):
    with pytest.raises(DataError, match="no file matches"):
        texts(tmp_path / "none*.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(ConfigError, match=r"data\.text"):
        texts(tmp_path / "a.jsonl", "{text")


@given(st.text(), st.text(alphabet=" \t\n", min_size=1))
def test_digests_ignore_white_space_only(text, space):
    there = Document(text, "x").digest()
    assert Document(space + text + space, "y").digest() == there
    assert Document(text + "z", "x").digest() != there


def test_files_are_found_and_read_as_those_of_records(tmp_path):
    (tmp_path / "[2024]").mkdir()
    for name in ("[2024]/a.jsonl", "A.JSONL"):
        (tmp_path / name).write_bytes(b'\xef\xbb\xbf{"text": "one"}\n')
        assert texts(tmp_path / name) == ["one"]
    (tmp_path / "a.csv").write_text("q;text\nwhy;one\n")
    assert texts(tmp_path / "a.csv") == ["one"]
    with pytest.raises(DataError, match="is a folder"):
        texts(tmp_path)


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ("file", ["one\ntwo\n\n \nthree\n"]),
        ("blank_line", ["one\ntwo\n\n", "three\n"]),
        ("line", ["one\n", "two\n", "three\n"]),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_documents_of_a_text_file_end_where_the_setting_says(tmp_path, documents, expected, end):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\ntwo\n\n \nthree\n".replace("\n", end).encode())
    found = list(read_documents(str(path), "text", documents))
    assert [d.text for d in found] == expected
    assert found[-1].origin == ("a.txt:1" if documents == "file" else "a.txt:5")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.txt.gz"])
@given(st.binary(max_size=60))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_documents_or_a_refusal(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    try:
        for document in read_documents(str(path), "text", "line"):
            assert document.text.strip()
            document.text.encode()
    except DataError as error:
        assert error.remedy
        assert name in error.message
