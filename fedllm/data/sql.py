"""Rows of a read-only query on PostgreSQL or SQLite."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import sqlalchemy
from sqlalchemy.engine import URL, Connection, Engine
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from fedllm.data.columns import ColumnMap, Row
from fedllm.errors import DataError

_FETCH_ROWS = 2000
_CONNECT_TIMEOUT_S = 10
# PostgreSQL's code for a statement cancelled by its time-out (appendix A of its manual).
_CANCELLED = "57014"
_QUOTED_OR_COMMENT = re.compile(
    r"'(?:[^']|'')*' | \"(?:[^\"]|\"\")*\" | --[^\n]* | /\*.*?\*/", re.VERBOSE | re.DOTALL
)


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
    _check_select(query)
    url = _parse(location)
    engine = _engine(url)
    with _connect(engine, url) as connection:
        try:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql(
                    f"SET LOCAL statement_timeout = {math.ceil(1000 * timeout_s)}"
                )
            yield from _fetch(connection, query, columns)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == _CANCELLED:
                raise DataError(
                    f"{_shown(url)}: the query took longer than {timeout_s:g} s",
                    "raise data.query_timeout_s, or ask the database for less: an index, a view",
                ) from None
            raise DataError(
                f"{_shown(url)}: the query failed: {_query_failure(error)}",
                "try data.query in the database's own client",
            ) from None


def _check_select(query: str) -> None:
    bare = _QUOTED_OR_COMMENT.sub(" ", query).strip().rstrip("; \t\r\n")
    if not re.match(r"(select|with)\b", bare, re.IGNORECASE) or ";" in bare:
        raise DataError("data.query is not one SELECT", "write a single SELECT statement")


def _parse(location: str) -> URL:
    # A password with a bare '@' would spill into the host name, which messages show.
    authority = location.partition("?")[0]
    try:
        url = sqlalchemy.make_url(location)
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
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S},
        )
    except (ModuleNotFoundError, NoSuchModuleError):
        raise DataError(
            f"{_shown(url)}: the driver of '{url.drivername}' is not installed",
            "write postgresql+psycopg:// and run: pip install 'fedllm[postgres]'",
        ) from None


def _sqlite_opener(url: URL) -> Any:
    # SQLite creates a missing file unless it is opened by a URI that forbids it.
    path = Path(url.database or "")
    if not path.is_file():
        raise DataError(
            f"there is no SQLite file {path}", "write sqlite:///relative or sqlite:////absolute"
        )
    uri = f"file:{quote(str(path.absolute()))}?mode=ro"
    return lambda: sqlite3.connect(uri, uri=True)


def _connect(engine: Engine, url: URL) -> Connection:
    try:
        return engine.connect().execution_options(
            no_parameters=True,
            **({"postgresql_readonly": True} if engine.dialect.name == "postgresql" else {}),
        )
    except SQLAlchemyError as error:
        raise DataError(
            f"{_shown(url)}: no connection: {_without_secrets(_first_line(error), url)}",
            "check host, port, user, password and database of the URL",
        ) from None


def _fetch(connection: Connection, query: str, columns: ColumnMap) -> Iterator[Row]:
    streamed = {"stream_results": True, "yield_per": _FETCH_ROWS}
    result = connection.exec_driver_sql(query, execution_options=streamed)
    names = list(result.keys())
    columns.check(names, "the result of data.query")
    for number, values in enumerate(result, 1):
        yield Row(number, None, dict(zip(names, values, strict=True)))


def _first_line(error: SQLAlchemyError) -> str:
    # The driver's own error: SQLAlchemy's adds the statement.
    lines = str(getattr(error, "orig", None) or type(error).__name__).splitlines()
    return lines[0] if lines else type(error).__name__


def _query_failure(error: DBAPIError) -> str:
    """Give the driver's words only where they speak of the query and not of the data.

    PostgreSQL's error class 42 (syntax error or access rule violation, appendix A of its
    manual) names tables and columns; class 22 (data exception) quotes values.
    """
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(error.orig, sqlite3.Error) or (state and state.startswith("42")):
        return _first_line(error)
    return f"{type(error.orig).__name__}{f' (SQLSTATE {state})' if state else ''}"


def _shown(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


def _without_secrets(text: str, url: URL) -> str:
    values = [url.password, *(v for v in url.query.values() if isinstance(v, str))]
    for secret in (str(value) for value in values if value):
        for form in {secret, quote(secret, safe=""), quote_plus(secret)}:
            text = text.replace(form, "***")
    return text
