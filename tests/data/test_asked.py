"""Texts of a file are read whole, or it is said where they are not."""

from __future__ import annotations

import gzip
import io
import json

import pytest

from fedllm.data.asked import read_asked
from fedllm.errors import DataError


def texts(location, column="text", stream=b""):
    found = read_asked(str(location), column, io.BytesIO(stream))
    assert [one.row for one in found] == list(range(1, len(found) + 1))
    return [(one.text, one.key) for one in found]


ROWS = [{"id": "a7", "text": "one"}, {"text": "two\nlines", "id": 3}, {"text": "漢"}]
FOUND = [("one", "a7"), ("two\nlines", 3), ("漢", None)]


def test_rows_and_lines_are_read(tmp_path):
    lines = "".join(f"{json.dumps(row)}\n\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines)
    assert texts(tmp_path / "a.jsonl") == FOUND
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert texts(tmp_path / "a.jsonl.gz") == FOUND
    (tmp_path / "whatever").write_text(f"\n{lines}")
    assert texts(tmp_path / "whatever") == FOUND
    assert texts("-", stream=b"\xef\xbb\xbf" + lines.encode()) == FOUND
    (tmp_path / "a.csv").write_text('id;note\n1;"x; y"\n2;z\n')
    assert texts(tmp_path / "a.csv", "note") == [("x; y", "1"), ("z", "2")]
    plain = "one text\n two \r\n{not JSON}\n"
    (tmp_path / "a.txt").write_text(plain)
    expected = [("one text", None), (" two ", None), ("{not JSON}", None)]
    assert texts(tmp_path / "a.txt") == texts("-", stream=plain.encode()) == expected
    (tmp_path / "b.txt").write_text("more")
    assert texts(tmp_path / "?.txt") == [*expected, ("more", None)]


def test_keys_of_other_kinds_are_none(tmp_path):
    rows = [{"text": "a", "id": value} for value in (True, None, [1], 1.5)]
    assert texts("-", stream="\n".join(map(json.dumps, rows)).encode()) == [("a", None)] * 4


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": 1}\n', "row 2.*'text' is of type int"),
        ("a.jsonl", b'{"text": "a"}\n{"other": "secret"}\n', "row 2.*'text' is null"),
        ("a.jsonl", b'{"text": "a"}\n{"text": " "}\n', "row 2.*'text' is empty"),
        ("a.jsonl", b'{"text": "a"}\nsecret\n', "row 2 .line 2.*not valid JSON"),
        ("a.jsonl", b'{"texd": "secret"}\n', "no column 'text'"),
        ("a.jsonl", b'["secret"]\n', "a JSON array"),
        ("a.jsonl", b"", "holds no texts"),
        ("a.txt", b"\n \n", "holds no texts"),
        ("a.txt", b"secret\n\n \r\ntwo\n", "a.txt row 2 .line 2.: the line is blank(.|\n)*line 3"),
        ("a.txt", b"\nsecret\n", "row 1 .line 1.: the line is blank"),
        ("a.txt", b"secret\n\n", "line 2.: the line is blank"),
        ("-", b"secret\n\ntwo", "standard input row 2 .line 2.: the line is blank"),
        ("a.txt", b"one\ntw\xff secret\n", "line 2: byte 3 of the line is not UTF-8"),
        ("a.txt", b"PK\x03\x04\xff\xfe", "not UTF-8"),
        ("a.txt", b"one\rtwo\r", "CR alone"),
        ("a.csv", b"note\nsecret\n", "no column 'text'"),
        ("-", b'{"text": "a"}\n{"text": ""}\n', "standard input row 2"),
        ("-", b"one\ntw\xff secret\n", "standard input line 2"),
        ("-", b"", "standard input holds no texts"),
    ],
)
def test_what_cannot_be_read_is_named_and_not_quoted(name, content, words, tmp_path):
    location = "-" if name == "-" else tmp_path / name
    if name != "-":
        location.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        texts(location, stream=content)
    assert caught.value.remedy
    # A command that asks has no key to name a column with.
    assert "data." not in caught.value.remedy
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        texts(tmp_path / "a.txt")
    with pytest.raises(DataError, match="is a folder"):
        texts(tmp_path)
