"""Whatever stands in a file: rows, or a refusal that holds nothing of it."""

from __future__ import annotations

import gzip
import io
import sqlite3
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.tasks import read_records

from fedllm.config import DataSection
from fedllm.errors import DataError

bounded = settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
pieces = st.sampled_from(
    [b"text", b"label", b"\n", b"\r", b",", b";", b'"', b"{", b"}", b"[", b":", b"\\ud800", b"\xff"]
)
contents = st.one_of(
    st.binary(max_size=80),
    st.lists(st.one_of(pieces, st.binary(max_size=4)), max_size=30).map(b"".join),
    st.binary(max_size=40).map(lambda rest: b"text,label\n" + rest),
    st.binary(max_size=40).map(lambda rest: b'{"text": "a", "label": "b"}\n' + rest),
)
# Letters that stand in none of our own words, so that any four of them are the record's.
secrets = st.text("ΑΒΓΔΕΖΗΘΙΚΛΜ", min_size=6, max_size=20)


def read(location: object, query: str | None = None):
    data = DataSection(train=str(location), query=query)
    return read_records(data.train, data, "classification")


def refused(location: object, query: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        read(location, query)
    assert caught.value.remedy
    return str(caught.value)


def rows_or_refusal(path: Path) -> None:
    try:
        assert read(path)
    except DataError as error:
        assert error.remedy
        assert path.name in str(error)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
@given(content=contents)
@bounded
def test_any_bytes_give_rows_or_a_refusal(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    rows_or_refusal(tmp_path / name)


@given(content=contents, damage=st.tuples(st.integers(0, 60), st.binary(max_size=3)))
@bounded
def test_any_damage_to_a_gzip_file_gives_rows_or_a_refusal(tmp_path, content, damage):
    packed = bytearray(gzip.compress(content, mtime=0))
    packed[damage[0] : damage[0] + 2] = damage[1]
    (tmp_path / "a.csv.gz").write_bytes(packed)
    rows_or_refusal(tmp_path / "a.csv.gz")


@given(st.integers(0, 10_000), st.binary(min_size=1, max_size=3))
@bounded
def test_any_damage_to_a_parquet_file_gives_rows_or_a_refusal(tmp_path, place, damage):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": ["a fever", "a cough"], "label": ["x", "y"]}), buffer)
    whole = bytearray(buffer.getvalue())
    place %= len(whole)
    whole[place : place + len(damage)] = damage
    (tmp_path / "a.parquet").write_bytes(whole)
    rows_or_refusal(tmp_path / "a.parquet")


@given(secrets, secrets)
@settings(bounded, max_examples=12)
def test_no_part_of_a_record_stands_in_a_refusal(tmp_path, text, label):
    broken = {
        "cut.jsonl": f'{{"text": "{text}", "label": "{label}"'.encode(),
        "list.jsonl": f'{{"text": ["{text}"], "label": "{label}"}}'.encode(),
        "array.jsonl": f'["{text}"]'.encode(),
        "latin.jsonl": f'{{"text": "{text}'.encode() + b'\xe9", "label": "x"}',
        "key.jsonl": f'{{"text": "{text}", "text": "{label}", "label": "x"}}'.encode(),
        "header.csv": f"{text},{label}\na,b\n".encode(),
        "quote.csv": f'text,label\n"{text},{label}\n'.encode(),
        "after.csv": f'text,label\n"{text}"{label},x\n'.encode(),
        "long.csv": f"text,label\n{text * 30_000},x\n".encode(),
        "fields.csv": f"text,label\n{text},{label},{text}\n".encode(),
        "not.parquet": f"PAR1{text}{label}PAR1".encode(),
        "not.csv.gz": text.encode(),
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        holds_none_of(refused(tmp_path / name), text + label)


@given(secrets)
@settings(bounded, max_examples=12)
def test_no_part_of_a_database_stands_in_a_refusal(tmp_path, text):
    path = tmp_path / "a.db"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (text, label)")
        connection.execute("INSERT INTO notes VALUES ('fine', 'x'), (?, 'x')", (f'{{"{text}',))
        not_utf8 = b"\xff" + text.encode()
        connection.execute("INSERT INTO notes VALUES (CAST(? AS TEXT), 'x')", (not_utf8,))
    connection.close()
    url = f"sqlite:///{path}"
    for query in (
        "SELECT text, label FROM notes",
        "SELECT text, json_extract('{}', text) AS label FROM notes",
        "SELECT text, json(text) AS label FROM notes",
    ):
        holds_none_of(refused(url, query), text)


def holds_none_of(message: str, text: str) -> None:
    for start in range(len(text) - 3):
        assert text[start : start + 4] not in message
