"""Whether columns that were chosen can be used: else a refusal that says which could be."""

from __future__ import annotations

import difflib
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence

from fedllm.config.task import columns_read, either_of, may_lack
from fedllm.data.labels import check_distinct, doubts
from fedllm.data.values import BadValueError, present_value, text_value
from fedllm.errors import DataError
from fedllm.starting.guessing import Guess, shown_columns
from fedllm.starting.looking import Sample
from fedllm.starting.profiles import Profile, is_empty
from fedllm.visible import quoted

# With fewer records noise hides everything, and every split of them is empty somewhere.
FEWEST_RECORDS = 20
MOST_LABELS = 1000
_RECORDS_A_LABEL = 2.0


def check_there(columns: Mapping[str, str], sample: Sample) -> None:
    """Refuse columns that the source does not have.

    Raises
    ------
    DataError
        Names the nearest ones.
    """
    for role, name in columns.items():
        if name not in sample.columns:
            close = difflib.get_close_matches(name, sample.columns, n=3, cutoff=0.5)
            there = ", ".join(quoted(one) for one in close or sample.columns[:20])
            raise DataError(
                f"{sample.source.called} has no column {name!r}",
                f"give --{role} one of its columns: {there}",
            )


def check_usable(guess: Guess, sample: Sample, profiles: Mapping[str, Profile]) -> list[str]:
    """Refuse what no run could be made of; return what a person should look at.

    Raises
    ------
    DataError
        If there are too few records, or a column that is read is empty in some row, or a label
        is a date, a measured number, or different in nearly every row.
    """
    if sample.count < FEWEST_RECORDS:
        raise DataError(
            f"{sample.source.called} holds {sample.count} rows; noise that hides one of so few "
            "hides all of them",
            f"give at least {FEWEST_RECORDS}; some thousand are a good beginning",
        )
    _check_either(guess)
    kinds = columns_read(guess.task)
    about = {role: name for role, name in (("unit", guess.unit), ("site", guess.site)) if name}
    needed = {
        role: name for role, name in guess.columns.items() if role not in may_lack(guess.task)
    }
    for role, name in {**needed, **about}.items():
        _check_filled(role, name, sample)
    for role, name in guess.columns.items():
        found = profiles[name]
        if kinds[role] == "text" and found.holds in ("whole number", "number", "date", "boolean"):
            raise DataError(
                f"column {quoted(name)} holds values of the kind '{found.holds}', and no texts",
                f"name the column of the {role} with --{role}: {shown_columns(profiles)}",
            )
    if "label" not in guess.columns:
        return []
    return check_labels(guess.columns["label"], sample, profiles)


def _check_either(guess: Guess) -> None:
    ways = either_of(guess.task)
    if ways and not any(set(way) <= set(guess.columns) for way in ways):
        raise DataError(
            "the columns of the answers are not known: "
            + ", or ".join(" and ".join(way) for way in ways),
            "name them: "
            + ", or ".join(" and ".join(f"--{r} COLUMN" for r in way) for way in ways),
        )


def _check_filled(role: str, name: str, sample: Sample) -> None:
    empty = [number for number, row in enumerate(sample.rows, 1) if is_empty(row.get(name))]
    if empty:
        raise DataError(
            f"column {quoted(name)} is empty in {len(empty)} of {len(sample.rows)} rows, the "
            f"first of them row {empty[0]}",
            f"correct these rows or take them out, or name another column with --{role}; no row is "
            "left out silently",
        )


def labels_of(column: str, rows: Sequence[Mapping[str, object]]) -> Counter[str]:
    """Count the records of each label, as a run reads it."""
    return Counter(str(row[column]) for row in rows)


def check_labels(column: str, sample: Sample, profiles: Mapping[str, Profile]) -> list[str]:
    """Refuse a column that cannot be the label; return what looks wrong with single labels.

    Raises
    ------
    DataError
        Names the column, why, and which could be.
    """
    found = profiles[column]
    others = [
        quoted(name)
        for name, one in profiles.items()
        if name != column and one.holds in ("name", "identifier") and one.repeats >= 5
    ]
    remedy = "name another column with --label" + (f": {' or '.join(others)}" if others else "")
    remedy += ", or give --task causal if there is no label"
    if found.holds == "date":
        raise DataError(f"column {quoted(column)} holds dates, which are no labels", remedy)
    if found.holds == "number":
        raise DataError(
            f"column {quoted(column)} holds {found.distinct} measured numbers, and a label is "
            "one of few names",
            f"name a few ranges instead (low, high), or {remedy}",
        )
    for number, row in enumerate(sample.rows, 1):
        try:
            if isinstance(present_value(row[column], column), str):
                text_value(row[column], column)
        except BadValueError as error:
            raise DataError(f"row {number}: {error}", "correct the row") from None
    kinds = {type(row[column]) for row in sample.rows}
    if wrong := kinds - {str, int, uuid.UUID}:
        raise DataError(
            f"column {quoted(column)} is of type {min(one.__name__ for one in wrong)}, not "
            "text or a whole number",
            f"write its values as words, or {remedy}",
        )
    records_of = labels_of(column, sample.rows)
    if len(records_of) < 2:
        raise DataError(f"column {quoted(column)} has one value in all rows", remedy)
    if len(records_of) > MOST_LABELS or found.repeats < _RECORDS_A_LABEL:
        raise DataError(
            f"column {quoted(column)} has {len(records_of):,} different values in "
            f"{len(sample.rows):,} rows: it looks like a text or a number of each row, and no "
            "label",
            f"put rare labels together until there are some dozen, or {remedy}",
        )
    check_distinct(list(records_of), f"column {quoted(column)}", listed=True)
    return [f"{doubt.found}; {doubt.remedy}" for doubt in doubts(records_of, "--label")]
