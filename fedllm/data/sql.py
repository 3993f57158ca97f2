"""Rows of a read-only query on PostgreSQL or SQLite."""

from __future__ import annotations

import math
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import sqlalchemy
from sqlalchemy.engine import URL, Connection, CursorResult, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from fedllm.data.columns import ColumnMap, Row
from fedllm.data.query import single_select
from fedllm.data.values import text_or_unreadable
from fedllm.errors import DataError
from fedllm.extras import remedy_of

_FETCH_ROWS = 2000
_CONNECT_TIMEOUT_S = 10
_BARE_POSTGRESQL = re.compile(r"^postgres(ql)?://")
# PostgreSQL's code for a statement cancelled by its time-out (appendix A of its manual).
_CANCELLED = "57014"
_QUERY_REMEDY = "try data.query in the database's own client"
_RESULT = "the result of data.query"


def query_rows(
    location: str, query: str | None, columns: ColumnMap, timeout_s: float
) -> Iterator[Row]:
    """Yield the rows of one SELECT, streamed, in a session that cannot write.

    SQL promises no order: a query without ORDER BY may give its rows, and so a simulated
    split, differently each time.

    Parameters
    ----------
    location : str
        ``postgresql+psycopg://user:password@host/database`` or ``sqlite:///file``.
    query : str
        One SELECT (or WITH ... SELECT), handed to the database as it is: no parameters.
    columns : ColumnMap
        Columns that the result must have.
    timeout_s : float
        PostgreSQL cancels a statement that takes longer: the query's start, or the next
        rows of it.

    Raises
    ------
    DataError
        If the URL, the driver, the connection or the query is wrong. Neither the password
        nor a value of the data is in the message.
    """
    if not query or not query.strip():
        raise DataError(
            "the data source is a database, but data.query is missing",
            "add query = 'SELECT ...' under [data]",
        )
    url = _parse(location)
    statement = single_select(query, url.get_backend_name())
    with _session(url, timeout_s) as connection:
        with _check_query(connection, statement, url) as checked:
            if connection.dialect.name == "postgresql":
                statement = _columns_of_map(checked, connection, statement, columns)
        yield from _fetch(connection, statement, columns)


def query_columns(location: str, query: str, timeout_s: float) -> list[str]:
    """Return the names of a query's columns that can be read; no row of it is.

    Raises
    ------
    DataError
        As `query_rows`.
    """
    url = _parse(location)
    statement = single_select(query, url.get_backend_name())
    with (
        _session(url, timeout_s) as connection,
        _check_query(connection, statement, url) as checked,
    ):
        names = list(checked.keys())
        if connection.dialect.name == "postgresql":
            names = [name for name in names if _is_read(checked, name)]
        return names


@contextmanager
def _session(url: URL, timeout_s: float) -> Iterator[Connection]:
    """Open a database for reading; errors in the block, too, are told without a value."""
    engine = _engine(url)
    with _connect(engine, url) as connection:
        try:
            if engine.dialect.name == "postgresql":
                _prepare_postgresql(connection, timeout_s)
            yield connection
        except DataError:
            raise
        except Exception as error:
            # Drivers raise many classes, and their words may quote a value.
            raise _failure(error, url, timeout_s) from None


def _is_read(checked: CursorResult[Any], name: str) -> bool:
    from fedllm.data.postgresql import check_types

    try:
        check_types(checked.cursor, [name], _RESULT)  # type: ignore[attr-defined]
    except DataError:
        return False
    return True


def table_names(location: str) -> list[str]:
    """Return the names of a database's tables and views that can be found without a schema's name.

    Raises
    ------
    DataError
        As `query_rows`.
    """
    url = _parse(location)
    with _connect(_engine(url), url) as connection:
        try:
            found = sqlalchemy.inspect(connection)
            return sorted([*found.get_table_names(), *found.get_view_names()])
        except SQLAlchemyError as error:
            raise _failure(error, url, _CONNECT_TIMEOUT_S) from None


def _prepare_postgresql(connection: Connection, timeout_s: float) -> None:
    from fedllm.data.postgresql import read_texts

    for setting in (
        # Also for a transaction after this one.
        "SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
        f"LOCAL statement_timeout = {math.ceil(1000 * timeout_s)}",
        # The check of the query reads quotes by the standard.
        "LOCAL standard_conforming_strings = on",
    ):
        connection.exec_driver_sql(f"SET {setting}")
    driver = connection.connection.driver_connection
    read_texts(driver)
    if driver.info.parameter_status("server_encoding") == "SQL_ASCII":  # type: ignore[union-attr]
        # Such a database holds any bytes; asked for UTF-8, it would refuse the whole query.
        connection.exec_driver_sql("SET LOCAL client_encoding = SQL_ASCII")


def _check_query(connection: Connection, statement: str, url: URL) -> CursorResult[Any]:
    """Run a query without reading a row, so that all words of the database are about it."""
    try:
        return connection.exec_driver_sql(
            f"SELECT * FROM (\n{statement}\n) AS rows LIMIT 0"  # noqa: S608
        )
    except DBAPIError as error:
        if words := _words_about_query(error):
            raise DataError(f"{_shown(url)}: the query failed: {words}", _QUERY_REMEDY) from None
        raise


def _columns_of_map(
    checked: CursorResult[Any], connection: Connection, statement: str, columns: ColumnMap
) -> str:
    """Return a PostgreSQL query for the columns of the map alone.

    Others may hold what Python cannot, such as a timestamp of 'infinity'.
    """
    from fedllm.data.postgresql import check_types

    present = list(checked.keys())
    columns.check(present, _RESULT)
    check_types(checked.cursor, columns.names, _RESULT)  # type: ignore[attr-defined]
    quoted = connection.dialect.identifier_preparer.quote_identifier
    chosen = ", ".join(quoted(name) for name in columns.names if name in present)
    return f"SELECT {chosen} FROM (\n{statement}\n) AS rows"  # noqa: S608


def _failure(error: Exception, url: URL, timeout_s: float) -> DataError:
    state = getattr(getattr(error, "orig", None), "sqlstate", None)
    if state == _CANCELLED:
        return DataError(
            f"{_shown(url)}: the query took longer than {timeout_s:g} s",
            "raise data.query_timeout_s, or ask the database for less: an index, a view",
        )
    driver = getattr(error, "orig", None) or error
    code = state or getattr(driver, "sqlite_errorname", None)
    kind = f"{type(driver).__name__}{f' ({code})' if code else ''}"
    return DataError(f"{_shown(url)}: the query failed: {kind}", _QUERY_REMEDY)


def _parse(location: str) -> URL:
    # A password with a bare '@' would spill into the host name, which messages show.
    authority = location.partition("?")[0]
    try:
        # libpq's other name for the same; SQLAlchemy takes psycopg 2 where no driver is named.
        url = sqlalchemy.make_url(_BARE_POSTGRESQL.sub("postgresql+psycopg://", location))
    except (ArgumentError, ValueError):
        url = None
    if url is None or (not authority.startswith("sqlite") and authority.count("@") > 1):
        raise DataError(
            "the SQL URL of the data source cannot be read",
            "write it as postgresql+psycopg://user:password@host:5432/database, with special "
            "characters of the password percent-encoded ('@' as %40)",
        ) from None
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise DataError(
            f"databases of type '{url.get_backend_name()}' are not supported",
            "use PostgreSQL or SQLite, where the session can be made read-only, or export a file",
        )
    return url


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return sqlalchemy.create_engine(
            "sqlite://", creator=_sqlite_opener(url), poolclass=NullPool, hide_parameters=True
        )
    try:
        return sqlalchemy.create_engine(
            url,
            poolclass=NullPool,
            hide_parameters=True,
            # The database converts to UTF-8, whatever it keeps.
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "client_encoding": "utf8"},
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise DataError(
            f"{_shown(url)}: the driver of '{url.drivername}' is not installed",
            f"write postgresql+psycopg://, and {remedy_of('postgres')}",
        ) from None


def _sqlite_opener(url: URL) -> Any:
    # SQLite creates a missing file unless it is opened by a URI that forbids it.
    path = Path(url.database or "")
    if not os.path.isfile(path):
        raise DataError(
            f"there is no SQLite file {path}", "write sqlite:///relative or sqlite:////absolute"
        )
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(uri, uri=True)
        # SQLite's own decoding would quote a text that is not UTF-8.
        connection.text_factory = text_or_unreadable
        return connection

    return connect


def _connect(engine: Engine, url: URL) -> Connection:
    try:
        return engine.connect().execution_options(
            no_parameters=True,
            **({"postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}),
        )
    except Exception as error:
        words = (
            _without_secrets(_first_line(error), url)
            if isinstance(error, SQLAlchemyError)
            else type(error).__name__
        )
        raise DataError(
            f"{_shown(url)}: no connection: {words}",
            "check host, port, user, password and database of the URL",
        ) from None


def _fetch(connection: Connection, statement: str, columns: ColumnMap) -> Iterator[Row]:
    streamed = {"stream_results": True, "yield_per": _FETCH_ROWS}
    result = connection.exec_driver_sql(statement, execution_options=streamed)
    names = list(result.keys())
    columns.check(names, _RESULT)
    for number, values in enumerate(result, 1):
        yield Row(number, None, dict(zip(names, values, strict=True)))


def _first_line(error: SQLAlchemyError) -> str:
    # The driver's own error: SQLAlchemy's adds the statement.
    lines = str(getattr(error, "orig", None) or type(error).__name__).splitlines()
    return lines[0] if lines else type(error).__name__


def _words_about_query(error: DBAPIError) -> str:
    """Give the driver's words where they speak of the query.

    PostgreSQL's error class 42 (syntax error or access rule violation, appendix A of its
    manual) names tables and columns; class 22 (data exception) quotes values.
    """
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error.orig, sqlite3.Error) or (state and state.startswith("42")):
        return _first_line(error)
    return ""


def _shown(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _without_secrets(text: str, url: URL) -> str:
    values = [url.password, *(v for v in url.query.values() if isinstance(v, str))]
    for secret in (str(value) for value in values if value):
        for form in {secret, quote(secret, safe=""), quote_plus(secret)}:
            text = text.replace(form, "***")
    return text
