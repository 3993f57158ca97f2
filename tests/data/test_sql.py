from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from support.tasks import read_records

from fedllm.config import DataSection
from fedllm.errors import DataError


@pytest.fixture
def database(tmp_path) -> Path:
    path = tmp_path / "clinic #1.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (id INTEGER, note TEXT, code INTEGER, person TEXT)")
        connection.executemany(
            "INSERT INTO notes VALUES (?, ?, ?, ?)",
            [(i, f"100% :fine, note {i}", i % 3, f"p{i % 4}") for i in range(5000)],
        )
    connection.close()
    return path


def read(url: str, query: str | None, **keys):
    data = DataSection(train=url, query=query, text="note", label="code", **keys)
    return read_records(url, data, "classification")


def refusal(url: str, query: str | None = "SELECT 1", **keys) -> str:
    with pytest.raises(DataError) as caught:
        read(url, query, **keys)
    assert caught.value.remedy
    return str(caught.value)


def test_rows_of_a_query_become_records(database):
    records = read(
        f"sqlite:///{database}",
        "-- ours; all of them\nSELECT note, code, person FROM notes "
        "WHERE note LIKE '100% :fine; %' OR note LIKE '100% :fine%' ORDER BY id;",
        unit="person",
        max_records_per_unit=2000,
    )
    assert len(records) == 5000
    assert dict(records[4].values) == {"text": "100% :fine, note 4", "label": "1"}
    assert records[4].unit == "p0"
    assert records[4].origin == "query:5"


def test_session_is_read_only(database):
    url = f"sqlite:///{database}"
    for query in (
        "DELETE FROM notes RETURNING note, code",
        "SELECT note, code FROM notes; DELETE FROM notes",
        "WITH x AS (SELECT 1) DELETE FROM notes RETURNING note, code",
    ):
        refusal(url, query)
    assert len(read(url, "SELECT note, code FROM notes")) == 5000


def test_missing_database_is_not_created(tmp_path):
    path = tmp_path / "none.db"
    assert "there is no SQLite file" in refusal(f"sqlite:///{path}")
    assert not path.exists()
    assert "there is no SQLite file" in refusal("sqlite://")


def test_wrong_queries(database, tmp_path):
    url = f"sqlite:///{database}"
    assert "data.query is missing" in refusal(url, None)
    assert "no such table: nots" in refusal(url, "SELECT note, code FROM nots")
    assert "no column 'code'; columns there: note" in refusal(url, "SELECT note FROM notes")
    assert "2 columns 'note'" in refusal(url, "SELECT note, code, note FROM notes")
    assert "holds no rows" in refusal(url, "SELECT note, code FROM notes WHERE id < 0")
    message = refusal(url, "SELECT note, nullif(code, 2) AS code FROM notes ORDER BY id")
    assert "1666 rows cannot be used" in message
    assert "query row 3: field 'code' is null" in message
    (tmp_path / "text.db").write_text("no database " * 100)
    assert "file is not a database" in refusal(
        f"sqlite:///{tmp_path / 'text.db'}", "SELECT note FROM notes"
    )


def test_test_set_must_be_a_file(database):
    url = f"sqlite:///{database}"
    assert "data.test is a SQL URL" in refusal(url, "SELECT note, code FROM notes", test=url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://nurse:{}@127.0.0.1:1/clinic",
        "postgresql+psycopg://nurse:{}@127.0.0.1:port/clinic",
        "postgresql+psycopg://nurse:{}@%@127.0.0.1:1/clinic",
        "postgresql+psycopg://nurse:a@{}@127.0.0.1:1/clinic",
        "postgresql+psycopg://nurse:a@b/{}@127.0.0.1:1/clinic",
        "postgresql+psycopg:///clinic?host=127.0.0.1&port=1&password={}",
        "postgresql+nodriver://nurse:{}@127.0.0.1/clinic",
        "mysql+pymysql://nurse:{}@127.0.0.1/clinic",
        "nodatabase://nurse:{}@127.0.0.1/clinic",
        "://{}",
    ],
)
def test_password_is_in_no_message(url):
    message = refusal(url.format("pa55word"))
    assert "pa55word" not in message


def test_a_text_that_is_not_utf8_is_named_by_row(database):
    with sqlite3.connect(database) as connection:
        bad = "Private caf\u00e9".encode("latin-1")
        connection.execute("UPDATE notes SET note = CAST(? AS TEXT) WHERE id = 2", (bad,))
        connection.execute("ALTER TABLE notes ADD COLUMN other TEXT")
        connection.execute("UPDATE notes SET other = CAST(? AS TEXT)", (bad,))
    connection.close()
    url = f"sqlite:///{database}"
    message = refusal(url, "SELECT note, code, other FROM notes ORDER BY id")
    assert "1 row cannot be used" in message
    assert "query row 3: field 'note' is not UTF-8" in message
    assert "Private" not in message
    # A column that nobody asked for may hold anything.
    assert len(read(url, "SELECT note, code, other FROM notes WHERE id <> 2")) == 4999


def test_an_error_on_the_way_quotes_nothing(database):
    url = f"sqlite:///{database}"
    query = "SELECT note, json_extract('{}', note) AS code FROM notes"
    message = refusal(url, query)
    assert "fine" not in message
    assert "the query failed: OperationalError (SQLITE_ERROR)" in message


def test_the_order_of_the_query_is_kept(database):
    query = "SELECT note, code FROM notes ORDER BY id DESC -- newest first"
    records = read(f"sqlite:///{database}", query)
    assert records[0].values["text"] == "100% :fine, note 4999"


@pytest.mark.parametrize("start", ["postgres://", "postgresql://", "postgresql+psycopg://"])
def test_all_names_of_postgresql_reach_the_same_driver(start):
    pytest.importorskip("psycopg")
    message = refusal(f"{start}nurse:pa55word@127.0.0.1:1/clinic")
    assert "postgresql+psycopg://nurse:***@127.0.0.1:1/clinic: no connection" in message
