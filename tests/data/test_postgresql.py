from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from support.postgresql import PASSWORD, postgresql
from support.tasks import read_records
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands import plan_quality
from fedllm.config import DataSection, load_run_config
from fedllm.data.sql import query_columns, table_names
from fedllm.errors import DataError

psycopg = pytest.importorskip("psycopg", reason="needs the extra 'postgres'")

QUERY = "SELECT note, code, person FROM notes ORDER BY id"


@pytest.fixture(scope="module")
def port():
    with postgresql() as port:
        with connect(port) as connection:
            connection.execute("CREATE TABLE notes (id int, note text, code int, person uuid)")
            connection.execute(
                "INSERT INTO notes SELECT i, '100% :fine; note ' || i, i % 3, "
                "('00000000-0000-0000-0000-' || lpad((i % 700)::text, 12, '0'))::uuid "
                "FROM generate_series(0, 4999) AS i"
            )
            connection.execute("CREATE SEQUENCE counter")
        yield port


def connect(port: int):
    return psycopg.connect(
        host="127.0.0.1", port=port, user="nurse", password=PASSWORD, dbname="postgres"
    )


def url(port: int, password: str = PASSWORD, name: str = "postgres") -> str:
    return f"postgresql+psycopg://nurse:{quote(password, safe='')}@127.0.0.1:{port}/{name}"


def read(location: str, query: str, **keys):
    data = DataSection(train=location, query=query, text="note", label="code", **keys)
    return read_records(location, data, "classification")


def refusal(location: str, query: str, **keys) -> str:
    with pytest.raises(DataError) as caught:
        read(location, query, **keys)
    assert caught.value.remedy
    assert PASSWORD not in str(caught.value)
    assert quote(PASSWORD, safe="") not in str(caught.value)
    return str(caught.value)


def test_rows_become_records(port):
    records = read(url(port), QUERY, unit="person")
    assert len(records) == 5000
    assert dict(records[4].values) == {"text": "100% :fine; note 4", "label": "1"}
    assert len({record.unit for record in records}) == 700
    assert records[4].origin == "query:5"


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM notes RETURNING note, code",
        "SELECT note, code FROM notes; DELETE FROM notes",
        "WITH gone AS (DELETE FROM notes RETURNING *) SELECT note, code FROM gone",
        "SELECT 'x' || nextval('counter') AS note, 1 AS code",
        "SELECT note, code INTO copied FROM notes",
        "SELECT note, code FROM notes FOR UPDATE",
        "WITH off AS (SELECT set_config('transaction_read_only', 'off', false)) "
        "SELECT o.set_config AS note, 1 AS code FROM off AS o",
        "COPY notes TO PROGRAM 'true'",
        "SELECT note, code FROM notes; COMMIT; DROP TABLE notes",
        "SELECT note, code FROM notes) AS r; COMMIT; DROP TABLE notes; SELECT * FROM (SELECT 1",
    ],
)
def test_nothing_can_be_written(port, query):
    refusal(url(port), query)
    assert len(read(url(port), QUERY)) == 5000
    with connect(port) as connection:
        assert connection.execute("SELECT is_called FROM counter").fetchone() == (False,)


def test_a_query_that_takes_too_long_is_cancelled(port):
    slow = "SELECT 'x' AS note, 1 AS code FROM pg_sleep(600)"
    message = refusal(url(port), slow, query_timeout_s=0.2)
    assert "took longer than 0.2 s" in message
    assert "data.query_timeout_s" in message


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT note, code FROM nots", 'relation "nots" does not exist'),
        ("SELECT note FROM notes", "no column 'code'; columns there: note"),
        ("SELECT note, code FROM notes WHERE false", "holds no rows"),
        ("SELECT note, nullif(code, 2) AS code FROM notes ORDER BY id", "1666 rows cannot be used"),
    ],
)
def test_wrong_queries_are_explained(port, query, words):
    assert words in refusal(url(port), query)


def test_an_error_that_would_quote_a_record_shows_its_code_alone(port):
    message = refusal(url(port), "SELECT note::int AS note, code FROM notes")
    assert "fine" not in message
    assert "22P02" in message


def test_the_password_is_in_no_message(port):
    assert "authentication failed" in refusal(url(port, password="wr0ng"), QUERY)
    assert "wr0ng" not in refusal(url(port, password="wr0ng"), QUERY)
    assert "does not exist" in refusal(url(port, name="nowhere"), QUERY)
    refusal(f"{url(port)}?sslmode=require", QUERY)
    refusal(f"{url(port)}?options=-c%20nonsense%3D{quote(PASSWORD, safe='')}", QUERY)


def test_only_the_columns_of_the_mapping_are_read(port):
    query = (
        "SELECT 'a' AS note, 'card' AS code, 'infinity'::timestamptz AS valid_until, "
        "'0044-03-15 BC'::date AS born"
    )
    assert dict(read(url(port), query)[0].values) == {"text": "a", "label": "card"}
    message = refusal(url(port), query.replace("'card' AS code", "'infinity'::timestamptz AS code"))
    assert "column 'code' of the result of data.query is of type timestamptz, not text" in message


def test_texts_of_other_types_are_read(port):
    query = (
        "SELECT '<note>fever</note>'::xml::text AS note, oid::regclass AS code FROM pg_class "
        "WHERE relname = 'notes'"
    )
    assert dict(read(url(port), query)[0].values) == {
        "text": "<note>fever</note>",
        "label": "notes",
    }


@pytest.mark.parametrize(
    "query",
    [
        r"SELECT E'it\';s' AS note, 1 AS code",
        "SELECT $q$a; b$q$ AS note, 1 AS code; -- all",
        "(SELECT 'a;' AS note, 1 AS code) UNION (SELECT 'b', 2) ORDER BY code",
        'SELECT \'x\' AS note, 1 AS code, 2 AS "odd "" name; ("',
    ],
)
def test_one_select_of_any_form_is_read(port, query):
    assert read(url(port), query)


def test_a_text_that_is_not_utf8_is_named_by_row(port):
    with connect(port) as connection:
        connection.autocommit = True
        connection.execute("CREATE DATABASE old ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
    old = psycopg.connect(
        host="127.0.0.1", port=port, user="nurse", password=PASSWORD, dbname="old"
    )
    with old as connection:
        connection.execute("CREATE TABLE notes (id int, note text, code int)")
        connection.execute("INSERT INTO notes VALUES (1, 'fine', 1), (2, E'Private caf\\xe9', 2)")
    message = refusal(url(port, name="old"), "SELECT note, code FROM notes ORDER BY id")
    assert "query row 2: field 'note' is not UTF-8" in message
    assert "Private" not in message


def test_columns_that_can_be_read_are_found_and_no_row_is(port):
    with connect(port) as connection:
        connection.execute("CREATE TABLE visits (id int, seen timestamp, note text, size float8)")
        connection.execute(
            "INSERT INTO visits SELECT i, 'infinity', 'x', 1 FROM generate_series(1,9) i"
        )
    assert query_columns(url(port), "SELECT * FROM visits", 60.0) == ["id", "note"]
    assert {"notes", "visits"} <= set(table_names(url(port)))
    with pytest.raises(DataError, match="does not exist") as caught:
        query_columns(url(port), "SELECT nothing FROM visits", 60.0)
    assert PASSWORD not in str(caught.value)


def test_a_first_configuration_of_a_table_holds_no_password(port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan_quality, "reckoned", lambda *_: {})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    arguments = ["init", url(port), "--table", "public.notes", "--yes", "--model", "model"]
    done = CliRunner().invoke(app, [*arguments, "--label", "code"])
    assert done.exit_code == 0, done.output
    text = Path("run.toml").read_text()
    for secret in (PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in text + done.output
    monkeypatch.setenv("FEDLLM_DATABASE", url(port))
    config = load_run_config(Path("run.toml"))
    assert config.data.train == url(port)
    assert (config.data.unit, config.data.labels) == ("person", ("0", "1", "2"))
    records = read_records(config.data.train, config.data, config.task)
    assert len(records) == 5000
