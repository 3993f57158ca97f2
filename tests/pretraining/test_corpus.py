"""Reading documents, and refusing files that are not as declared."""

import gzip
import json

import pytest
from hypothesis import given
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
    with pytest.raises(DataError, match=r"a.parquet:1: column 'missing'"):
        texts(tmp_path / "a.parquet", "missing")
    (tmp_path / "b.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"b.parquet cannot be read"):
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
        ("a.jsonl", b'{"text": 3}\n', "text", r"a.jsonl:1: column 'text' is not text"),
        ("a.jsonl", b'{"a": "b"}\n', "text", r"a.jsonl:1: column 'text' is missing"),
        ("a.jsonl", b'{"text": "a"}\n{"te', "text", r"a.jsonl:2: not valid JSON"),
        ("a.jsonl", b"[1]\n", "text", r"a.jsonl:1: not a JSON object"),
        ("a.jsonl", b"\xff\xfe\n", "text", "cannot be read"),
        ("a.jsonl.gz", b"not gzip", "text", "cannot be read"),
        ("a.doc", b"", "text", "unknown kind of file"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, text, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        texts(tmp_path / name, text)


def test_a_missing_file_and_a_broken_template(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        texts(tmp_path / "none*.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    with pytest.raises(ConfigError, match=r"data\.text"):
        texts(tmp_path / "a.jsonl", "{text")


@given(st.text(), st.text(alphabet=" \t\n", min_size=1))
def test_digests_ignore_white_space_only(text, space):
    there = Document(text, "x").digest()
    assert Document(space + text + space, "y").digest() == there
    assert Document(text + "z", "x").digest() != there


def test_json_with_lone_surrogates_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a\ud800b"}) + "\n")
    assert Document(texts(tmp_path / "a.jsonl")[0], "").digest()
