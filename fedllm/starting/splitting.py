"""Records put aside as the public test file of a simulation, whole persons at a time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from fedllm.config.task import may_lack
from fedllm.data.records import RowProblems
from fedllm.data.values import BadValueError, present_value, text_value
from fedllm.errors import DataError
from fedllm.files import atomic_file
from fedllm.starting.guessing import Guess, prompt_of, unit_of
from fedllm.starting.looking import Sample
from fedllm.starting.profiles import is_empty

# Enough to tell a point of accuracy; more records do more good in training.
_MOST_TEST, _FEW = 5000, 1000
_SHARE, _SHARE_OF_FEW = 0.1, 0.2
_REMEDY = "correct these rows or take them out of the file; no row is left out silently"
# Records are somebody's.
_OWNER_ALONE = 0o600


@dataclass(frozen=True, slots=True)
class Split:
    """Two files, and what was counted while they were written.

    Attributes
    ----------
    train, test : Path
        JSON Lines with the columns that a run reads, and no others.
    records : tuple of int
        Of each.
    labels : Counter of str
        Records of each label in both.
    units, sites : int
        Units of more than a row, and natural sites, among the training records; 0 where there are
        none.
    """

    train: Path
    test: Path
    records: tuple[int, int]
    labels: Counter[str]
    units: int
    sites: int


def share_of_test(count: int) -> float:
    """Return which part of so many records is put aside."""
    return min(_SHARE_OF_FEW if count < _FEW else _SHARE, _MOST_TEST / count)


def split(sample: Sample, guess: Guess, train: Path, test: Path) -> Split:
    """Write all records of a source into two files, neither of which is there until both are.

    Which file a record is in follows from its person, its prompt, or else its own content: so a
    person, and a record that is there twice, is in one of them, and the same source gives the
    same files.

    Raises
    ------
    DataError
        If a row cannot be read, or lacks a field that is read.
    StorageError
        If they cannot be written.
    """
    about = [name for name in (guess.unit, guess.site) if name]
    columns = tuple(dict.fromkeys([*guess.columns.values(), *about]))
    limit = _limit(sample, guess)
    problems, labels = RowProblems(), Counter[str]()
    counts, units, sites = [0, 0], set[bytes](), set[str]()
    needed = _needed(guess)
    with (
        atomic_file(train, _OWNER_ALONE) as train_stream,
        atomic_file(test, _OWNER_ALONE) as test_stream,
    ):
        for name, row in sample.source.rows(columns):
            if row.problem:
                problems.add(row.where(name), row.problem, _REMEDY)
                continue
            if words := _trouble(row.fields, columns, needed):
                problems.add(row.where(name), words, _REMEDY)
                continue
            key = _key(row.fields, guess)
            aside = key < limit
            counts[aside] += 1
            if "label" in guess.columns:
                labels[str(row.fields[guess.columns["label"]])] += 1
            if aside:
                _write(test_stream, row.fields, tuple(guess.columns.values()))
                continue
            _write(train_stream, row.fields, columns)
            if unit_of(row.fields, guess) is not None:
                units.add(key)
            if guess.site:
                sites.add(str(row.fields[guess.site]).strip())
        problems.raise_if_any()
        if not all(counts):
            raise DataError(
                f"{sample.source.called} holds too few different records to put some aside",
                "give a public test file with --test, or none with --hold-out 0",
            )
    return Split(train, test, (counts[0], counts[1]), labels, len(units), len(sites))


def _trouble(row: Mapping[str, object], columns: tuple[str, ...], needed: list[str]) -> str:
    """Say what is wrong with a row that a run would refuse; quotes no value."""
    for name in columns:
        value = row.get(name)
        if is_empty(value):
            if name in needed:
                return f"field '{name}' is empty"
            continue
        try:
            if isinstance(present_value(value, name), str):
                text_value(value, name)
        except BadValueError as error:
            return str(error)
    return ""


def _limit(sample: Sample, guess: Guess) -> bytes:
    """Return the key below which a record is put aside."""
    share = share_of_test(sample.count)
    if sample.whole:
        # So few that chance alone would leave hardly any: exactly the share of the keys.
        keys = sorted({_key(row, guess) for row in sample.rows})
        return keys[min(len(keys) - 1, max(1, round(share * len(keys))))]
    return int(share * 2**256).to_bytes(32, "big")


def _needed(guess: Guess) -> list[str]:
    lacking = may_lack(guess.task)
    values = [name for role, name in guess.columns.items() if role not in lacking]
    return [*values, *(name for name in (guess.unit, guess.site) if name)]


def _key(row: Mapping[str, object], guess: Guess) -> bytes:
    """Return what decides where a record is: its unit, its prompt, or all that is read of it."""
    content = unit_of(row, guess) or prompt_of(row, guess)
    if content is None:
        read = [row.get(name) for name in guess.columns.values()]
        content = json.dumps(read, default=str, sort_keys=True)
    return hashlib.sha256(content.encode(errors="surrogatepass")).digest()


def _write(stream: BinaryIO, row: Mapping[str, object], columns: tuple[str, ...]) -> None:
    fields = {name: row[name] for name in columns if row.get(name) is not None}
    stream.write(json.dumps(fields, ensure_ascii=False, default=str).encode() + b"\n")
