"""All that is wrong with a file that somebody wrote, at once, each with its line and a remedy."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.config import package_folder, read_toml
from fedllm.config.locations import resolve_location
from fedllm.config.parsing import problems_of
from fedllm.data.readers import data_files
from fedllm.errors import ConfigError
from fedllm.reference.kinds import FILE_KINDS, FileKind

_HEADING = re.compile(r"\s*\[\s*([\w.-]+)\s*\]")
_KEY = re.compile(r"\s*[\"']?([\w.-]+)[\"']?\s*=")
_LINE_OF_ERROR = re.compile(r" at line (\d+)")
# Keys that name files, and by which the data of a run are found.
_DATA_KEYS = ("data.train", "data.test")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a file.

    Attributes
    ----------
    line : int or None
        Where, from 1; none for what is not there.
    key : str
        As ``section.key``; empty where it concerns no single key.
    words, remedy : str
        What, and what to do.
    """

    line: int | None
    key: str
    words: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found of a file.

    Attributes
    ----------
    kind : str
        Which kind of file it is; empty where it is no TOML.
    errors : tuple of Finding
        What makes it be refused.
    notes : tuple of Finding
        What is missing on this machine, and may be there on the one that reads the file.
    """

    kind: str
    errors: tuple[Finding, ...]
    notes: tuple[Finding, ...] = ()


def check_file(path: Path, kind: FileKind | None = None) -> Checked:
    """Check a file without doing anything with what it names.

    Parameters
    ----------
    path : Path
        The file.
    kind : FileKind, optional
        What it is meant to be; found out where it is left out.

    Raises
    ------
    ConfigError
        If it cannot be read at all: it is missing, a folder, or not text.
    """
    try:
        values = read_toml(path)
    except ConfigError as error:
        if " is not valid TOML" not in error.message:
            raise
        line = _LINE_OF_ERROR.search(error.message)
        words = error.message.removeprefix(f"{path} ")
        return Checked("", (Finding(int(line[1]) if line else None, "", words, error.remedy),))
    found = kind or kind_of(values)
    lines = lines_of_keys(path.read_text(encoding="utf-8-sig"))
    wrong = dict.fromkeys(problems_of(found.model, values))
    told = [Finding(lines.get(one.key), one.key, one.words, one.remedy) for one in wrong]
    errors = tuple(sorted(told, key=lambda one: one.line or 0))
    if not values:
        errors = (Finding(None, "", "the file says nothing", f"see `{_example(found)}`"), *errors)
    notes = tuple(
        Finding(lines.get(key), key, words, remedy)
        for key, words, remedy in _missing(found, values, path.parent)
    )
    return Checked(found.name, errors, notes)


def kind_of(values: Mapping[str, Any]) -> FileKind:
    """Return the kind of file that plain values are most likely meant to be.

    By keys that no other kind has; where these decide nothing, by how little is wrong.
    """
    there = set(values) | {
        f"{section}.{key}"
        for section, table in values.items()
        if isinstance(table, Mapping)
        for key in table
    }

    def fitness(kind: FileKind) -> tuple[int, int]:
        return len(kind.known_by.marks & there), -len(problems_of(kind.model, dict(values)))

    return max(FILE_KINDS, key=fitness)


def lines_of_keys(text: str) -> dict[str, int]:
    """Return the line of each section and key, from 1: of the first, where it is there twice.

    Lines inside a value of several lines may look like keys; they count for nothing where the
    file has the key itself.
    """
    section, found = "", dict[str, int]()
    for number, line in enumerate(text.splitlines(), 1):
        if heading := _HEADING.match(line):
            section = heading[1]
            found.setdefault(section, number)
        elif key := _KEY.match(line):
            found.setdefault(f"{section}.{key[1]}" if section else key[1], number)
    return found


def _example(kind: FileKind) -> str:
    return "fedllm init DATA" if kind.name in ("run", "site") else "docs/configuration.md"


def _missing(
    kind: FileKind, values: Mapping[str, Any], folder: Path
) -> Iterator[tuple[str, str, str]]:
    """Yield key, words and remedy of each place of a run or a site where nothing is."""
    if kind.name not in ("run", "site"):
        return
    for path in ("model.path", *_DATA_KEYS):
        section, name = path.split(".")
        table = values.get(section)
        value = table.get(name) if isinstance(table, Mapping) else None
        if not isinstance(value, str):
            continue
        try:
            place = resolve_location(value, folder, path)
            if path in _DATA_KEYS:
                missing = "://" not in place and not all(map(os.path.exists, data_files(place)))
            else:
                missing = _model_is_missing(place)
        except ConfigError as error:
            yield path, error.message, error.remedy
            continue
        if missing:
            yield (
                path,
                f"{path}: there is no {place} on this machine",
                "check the path; relative ones count from the folder of the file",
            )


def _model_is_missing(place: str) -> bool:
    if place.startswith("package:"):
        return not os.path.isdir(package_folder(place))
    return not os.path.exists(place)
