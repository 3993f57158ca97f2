"""A source is counted whole, whatever is kept of it."""

from __future__ import annotations

import gzip
import json
import sqlite3

import pytest

from fedllm.errors import DataError
from fedllm.starting.looking import Source, look

ROWS = [{"note": f"one, two {i}", "ward": "a" if i % 2 else "b"} for i in range(37)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "note;ward\n" + "".join(f'"{row["note"]}";{row["ward"]}\n' for row in ROWS)


@pytest.fixture(params=["jsonl", "jsonl.gz", "csv", "csv without an end", "parquet", "sqlite"])
def source(request, tmp_path):
    kind = request.param
    path = tmp_path / f"a.{kind.partition(' ')[0]}"
    if kind == "jsonl":
        path.write_text(LINES)
    elif kind == "jsonl.gz":
        path.write_bytes(gzip.compress(LINES.encode()))
    elif kind.startswith("csv"):
        path.write_text(TABLE if kind == "csv" else TABLE.rstrip("\n"))
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE visits (note, ward)")
            connection.executemany("INSERT INTO visits VALUES (:note, :ward)", ROWS)
        return Source(f"sqlite:///{path}", "SELECT * FROM visits")
    return Source(str(path))


@pytest.mark.parametrize("most", [37, 38, 36, 1])
def test_every_kind_of_source_is_counted(source, most):
    found = look(source, most)
    assert found.columns == ("note", "ward")
    assert (found.count, found.whole) == (37, most >= 37)
    assert [dict(row) for row in found.rows] == ROWS[:most]
    assert "one, two" not in repr(found)


def test_several_files_are_one_source(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(LINES)
    found = look(Source(str(tmp_path / "*.jsonl")), 10)
    assert found.count == 74


def test_a_row_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES + "{\n")
    with pytest.raises(DataError, match=r"a.jsonl row 38 \(line 38\)"):
        look(Source(str(tmp_path / "a.jsonl")))
