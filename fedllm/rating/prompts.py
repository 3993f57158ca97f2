"""The prompts whose answers are ranked: rows of a site's own file, each of them once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from fedllm.canonical import canonical_json, sha256_hex
from fedllm.data.columns import ColumnMap, MissingColumnError, Row
from fedllm.data.questions import event_key, question
from fedllm.data.readers import data_files, file_rows
from fedllm.data.records import RowProblems
from fedllm.data.values import BadValueError, present_value, text_value
from fedllm.errors import DataError

PROMPT, CONTEXT, ID, PERSON = "prompt", "context", "id", "person"
_REMEDY = "correct these rows or take them out; no row is left out silently"
_TWICE = "take all but one of them out: all answers to one prompt and context are one unit"


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt.

    Attributes
    ----------
    row : int
        Its place in the file, from 1.
    prompt, context : str
        Valid Unicode; the prompt is never empty, the context is where there is none.
    key : str or int, optional
        What the row has in its field ``id``.
    person : str
        Whom the row is about, where a column names it; else empty.
    unit : str
        What tells this prompt, with its context, from all others; see `unit_of`.
    """

    row: int
    prompt: str = field(repr=False)
    context: str = field(default="", repr=False)
    key: str | int | None = None
    person: str = field(default="", repr=False)
    unit: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "unit", unit_of(self.prompt, self.context))

    @property
    def asked(self) -> str:
        """The text that is put to the model: the context, an empty line, the prompt."""
        return question(self.prompt, self.context)


def unit_of(prompt: str, context: str) -> str:
    """Return the SHA-256 of a prompt and its context: what a ledger charges as one event."""
    return sha256_hex(canonical_json(list(event_key(prompt, context))))


def read_questions(location: str, person: str | None = None) -> list[Question]:
    """Read all prompts of a file.

    Parameters
    ----------
    location : str
        A path or a glob pattern: JSON Lines, CSV or Parquet, with the column ``prompt`` and
        perhaps ``context`` and ``id``.
    person : str, optional
        The column that names whom a row is about; every row must then name somebody.

    Raises
    ------
    DataError
        If the source is missing, damaged or empty, or a single row has no prompt, or that of
        another row: names file, row, line and field, and quotes no text.
    """
    problems, found, first_of = RowProblems(), list[Question](), dict[str, str]()
    named = {} if person is None else {PERSON: person}
    columns = ColumnMap(
        {PROMPT: PROMPT, **named}, {CONTEXT: CONTEXT, ID: ID}, frozenset([PROMPT, CONTEXT])
    )
    for source, row in _rows(location, columns):
        where = row.where(source)
        try:
            one = _question(row, person)
        except BadValueError as error:
            problems.add(where, str(error), error.remedy or _REMEDY)
            continue
        first = first_of.setdefault(one.unit, where)
        if first != where:
            problems.add(where, f"has the prompt and the context of {first}", _TWICE)
        else:
            found.append(one)
    problems.raise_if_any()
    if not found:
        raise DataError(f"{location} holds no prompts", "check that it is the right file")
    return found


def _rows(location: str, columns: ColumnMap) -> Iterator[tuple[str, Row]]:
    for path in data_files(location):
        try:
            for row in file_rows(path, columns):
                yield str(path), row
        except MissingColumnError as error:
            raise DataError(
                error.message,
                f"name the column with the prompts '{PROMPT}', and that with what stands before "
                f"them, if there is any, '{CONTEXT}'; or give --person another one",
            ) from None


def _question(row: Row, person: str | None) -> Question:
    if row.problem:
        raise BadValueError(row.problem)
    prompt = text_value(present_value(row.fields.get(PROMPT), PROMPT), PROMPT)
    if not prompt.strip():
        raise BadValueError(f"field '{PROMPT}' is empty")
    given = row.fields.get(CONTEXT)
    context = "" if given is None else text_value(present_value(given, CONTEXT), CONTEXT)
    key = row.fields.get(ID)
    if isinstance(key, bool) or not isinstance(key, str | int):
        key = None
    whose = "" if person is None else _person(present_value(row.fields.get(person), person), person)
    return Question(row.number, prompt, context if context.strip() else "", key, whose)


def _person(value: object, column: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    found = text_value(value, column)
    if not found.strip():
        raise BadValueError(f"field '{column}' is empty")
    return found
