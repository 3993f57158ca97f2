"""Whether a text is one SELECT, and which text that is."""

from __future__ import annotations

import re

from fedllm.errors import DataError

_STRING = r"'(?:[^']|'')*'"
_NAME = r'"(?:[^"]|"")*"'
_LINE_COMMENT = r"--[^\n]*"
# PostgreSQL's manual, 4.1.2.2 and 4.1.2.4: after E a backslash escapes, $tag$ ends at $tag$.
_POSTGRESQL = re.compile(
    rf"(?<![\w$])[eE]'(?:[^'\\]|''|\\.)*' | {_STRING} | {_NAME} | {_LINE_COMMENT}"
    r" | (?<![\w$])\$(?P<tag>(?:[^\W\d]\w*)?)\$.*?\$(?P=tag)\$"
    r" | (?P<comment>/\*) | (?P<sign>[;()]) | (?P<loose>['\"]|\$\w*\$)",
    re.VERBOSE | re.DOTALL,
)
_SQLITE = re.compile(
    rf"{_STRING} | {_NAME} | `(?:[^`]|``)*` | \[[^\]]*\] | {_LINE_COMMENT} | /\*.*?(?:\*/|\Z)"
    r" | (?P<sign>[;()]) | (?P<loose>['\"`\[])",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")


def single_select(query: str, dialect: str) -> str:
    """Return a query without the semicolon at its end.

    Semicolons and brackets in strings, quoted names and comments count for nothing. That
    the query does not write is for the database to enforce.

    Parameters
    ----------
    query : str
        SELECT, WITH ... SELECT, or several of them in brackets, by UNION and the like.
    dialect : {"postgresql", "sqlite"}
        Whose rules of quoting hold.

    Raises
    ------
    DataError
        If it is something else or more than one statement, or a quote, a comment or a
        bracket is not closed, or closed only.
    """
    pattern = _POSTGRESQL if dialect == "postgresql" else _SQLITE
    bare: list[str] = []
    position = depth = 0
    end: int | None = None
    while match := pattern.search(query, position):
        bare.append(query[position : match.start()])
        position = match.end()
        kind = match.lastgroup
        if kind == "comment":
            position = _comment_end(query, match.start())
        elif kind == "loose":
            raise _refusal("a quote in it is not closed")
        elif kind == "sign":
            depth += {"(": 1, ")": -1}.get(match[0], 0)
            if depth < 0:
                raise _refusal("a bracket in it is closed that was not opened")
            if match[0] == ";" and end is None:
                end = match.start()
            bare.append(match[0])
        else:
            # Even a comment keeps the words beside it apart.
            bare.append(" '' " if match[0][0] not in "-/" else " ")
    bare.append(query[position:])
    statement, _, rest = "".join(bare).partition(";")
    if rest.strip("; \t\r\n"):
        raise _refusal("more follows after a semicolon")
    if depth:
        raise _refusal("a bracket in it is not closed")
    if not re.match(r"[\s(]*(select|with)\b", statement, re.IGNORECASE):
        raise _refusal("it begins with another word")
    return query[:end]


def _comment_end(query: str, start: int) -> int:
    # PostgreSQL's block comments nest.
    depth = 0
    for edge in _COMMENT_EDGE.finditer(query, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    raise _refusal("a comment in it is not closed")


def _refusal(reason: str) -> DataError:
    return DataError(f"data.query is not one SELECT: {reason}", "write a single SELECT statement")
