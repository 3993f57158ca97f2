from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.data.query import single_select
from fedllm.errors import DataError

ONE_SELECT = [
    "SELECT 1",
    "  with x as (select 1) select * from x",
    "(SELECT 1) UNION (SELECT 2)",
    "((SELECT 1) UNION SELECT 2) ORDER BY 1",
    "SELECT ';)' AS a, \"b;(\" FROM t",
    "SELECT 'it''s; so' -- and; (\nFROM t",
    "/* ;( */ SELECT 1",
    "-- first; this\nSELECT 1",
]
POSTGRESQL_ONLY = [
    r"SELECT E'a\';(' AS a",
    r"SELECT e'\\' || ')'",
    "SELECT $$;'($$",
    "SELECT $q$ ; $$ ' $q$ AS a",
    "SELECT a[1], '[' FROM t",
    "SELECT 1 /* ; /* ( */ ; */ AS a",
    r"SELECT '\' AS a, ';' AS b",
]
SQLITE_ONLY = ["SELECT [a;(] FROM `b;)`", r"SELECT '\' AS a, ';' AS b"]
NOT_ONE = [
    "",
    ";",
    "DELETE FROM t",
    "SELECT 1; DELETE FROM t",
    "SELECT 1; SELECT 2",
    "SELECT '1'; DELETE FROM t --'",
    "(SELECT 1",
    "SELECT 1) AS x; DROP TABLE t; SELECT * FROM (SELECT 2",
    "SELECT 1) UNION (SELECT 2",
    "SELECT 'open",
    'SELECT "open',
    "selection",
    "VALUES (1)",
]
NOT_ONE_IN_POSTGRESQL = [
    r"SELECT '\'; DROP TABLE t; --'",
    r"SELECT E'\\'; DROP TABLE t; --'",
    "SELECT a$$; DROP TABLE t; --$$ FROM x",
    "SELECT $a$ $b$; DROP TABLE t",
    "SELECT 1 /* /* */; DROP TABLE t",
    "SELECT 1 /* ; DROP TABLE t",
    "SELECT [;] FROM t",
    "SELECT 1$$'$$; DROP TABLE t; --'",
    r"SELECT ae'\'; DROP TABLE t; --'",
]


@pytest.mark.parametrize("end", ["", ";", " ; ;\n", "; -- the end"])
@pytest.mark.parametrize("query", ONE_SELECT)
def test_one_select_is_given_back_without_its_semicolon(query, end):
    for dialect in ("postgresql", "sqlite"):
        assert single_select(query + end, dialect).rstrip() == query.rstrip()


def test_each_database_has_its_own_quotes():
    for query in POSTGRESQL_ONLY:
        assert single_select(query, "postgresql") == query
    for query in SQLITE_ONLY:
        assert single_select(query, "sqlite") == query


@pytest.mark.parametrize("query", NOT_ONE)
def test_anything_else_is_refused(query):
    for dialect in ("postgresql", "sqlite"):
        with pytest.raises(DataError, match=r"data\.query is not one SELECT"):
            single_select(query, dialect)


@pytest.mark.parametrize("query", NOT_ONE_IN_POSTGRESQL)
def test_what_postgresql_would_take_for_a_second_statement_is_refused(query):
    with pytest.raises(DataError, match=r"data\.query is not one SELECT"):
        single_select(query, "postgresql")


@given(
    st.lists(st.sampled_from([*"'\"$;()e\\-/*[ a\n`", "SELECT ", "$$", "/*", "*/"]), max_size=12)
)
def test_what_is_accepted_ends_before_the_first_bare_semicolon(parts):
    query = "SELECT " + "".join(parts)
    for dialect in ("postgresql", "sqlite"):
        try:
            statement = single_select(query, dialect)
        except DataError:
            continue
        assert query.startswith(statement)
        # A statement that is accepted is accepted again, and nothing is taken off it.
        assert single_select(statement, dialect) == statement
