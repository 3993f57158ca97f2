"""Refuse a file of prompts that is a site's, as far as can be known from here.

An alignment is not charged to anybody's ledger, because all that it reads is public or was released
under privacy. A file of records would break that silently, so what can be seen is looked at: where
the file lies, which file it is, which columns it has, and whether its prompts are those of records
that a run trained on here.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedllm.canonical import read_object
from fedllm.config import RunConfig
from fedllm.config.alignment import PromptsSection
from fedllm.config.locations import resolve_location
from fedllm.data.asked import Asked, rows_asked
from fedllm.data.columns import ColumnMap
from fedllm.data.parquet import parquet_columns
from fedllm.data.questions import question
from fedllm.data.readers import data_files
from fedllm.data.spelling import seen
from fedllm.errors import ConfigError, FedllmError, RefusedError
from fedllm.files import file_sha256
from fedllm.runs.names import ALIGN_TOML, RUN_TOML
from fedllm.runs.record import read_config
from fedllm.tasks import task_of

_PUBLIC = "write the prompts, and nothing else, of a public source into a file of their own"
_KIT = "kit.json"
# What rows of people or of answers have, and prompts have not.
_OF_RECORDS = frozenset(
    (
        "chosen",
        "rejected",
        "ranking",
        "ranks",
        "context",
        "rater",
        "raters",
        "label",
        "labels",
        "spans",
        "response",
        "output",
        "answer",
        "answers",
        "completion",
        "patient",
        "patient_id",
        "person",
        "person_id",
        "customer",
        "customer_id",
        "user_id",
        "client_id",
        "mrn",
    )
)
_LONGEST_LINE = 1 << 20
# What an alignment is made of.
_TAUGHT = (("model", "start"), ("reward", "run"), ("reward", "judge"))
# A question that many people ask may stand in records and in public.
_MOST_SHARED = 0.05
# Larger files of records are not read for it.
_MOST_BYTES = 1 << 28


def require_public(
    prompts: PromptsSection, asked: Sequence[Asked], runs: Sequence[Path]
) -> list[str]:
    """Refuse a file of prompts that is known to be records.

    Parameters
    ----------
    prompts : PromptsSection
        Says which file it is, and which columns of it are read.
    asked : sequence of Asked
        What was read of it.
    runs : sequence of Path
        Folders of all runs that the alignment is made of.

    Returns
    -------
    list of str
        Runs whose records lie here and yet could not be compared: unreadable, or too large.

    Raises
    ------
    RefusedError
        If it lies in a kit, is what a site's policy or a run names as its records, has columns of
        records, or shares more than one prompt in twenty with records that lie here.
    """
    configs = list(_with_earlier(runs))
    own = {name for name in (prompts.column, prompts.context) if name is not None}
    for path in data_files(prompts.file):
        _require_no_kit(path)
        _require_no_ratings(path)
        _require_no_policy_names(path)
        for config in configs:
            _require_other(path, config.data.train, f"data.train of the run {config.name}")
        _require_prompts_alone(path, prompts.column, own, configs)
    compared = [(config.name, _require_other_texts(asked, config)) for config in configs]
    return list(dict.fromkeys(name for name, was in compared if not was))


def not_compared(runs: Sequence[str]) -> str:
    """Say of which runs `require_public` could not compare the records."""
    return (
        f"prompts.file was not compared with the records of {', '.join(runs)}, which lie here and "
        "cannot be read, or are too large"
    )


def _refused(path: Path | str, why: str) -> RefusedError:
    return RefusedError(f"prompts.file = {path} is not public: {why}", _PUBLIC)


def _with_earlier(runs: Sequence[Path]) -> Iterator[RunConfig]:
    """Yield the configurations of runs and of all that went into them, where they are here."""
    visited: set[Path] = set()
    places = list(runs)
    while places:
        place = places.pop(0)
        folder = (place if (place / RUN_TOML).exists() else place.parent).resolve()
        if folder in visited:
            continue
        visited.add(folder)
        places += _taught(folder)
        try:
            config = read_config(folder)
        except FedllmError:
            continue
        yield config
        places += [] if config.model.start is None else [Path(config.model.start)]


def _taught(folder: Path) -> list[Path]:
    """Return the runs that an aligned model was made of; none of a model of another kind."""
    try:
        values = tomllib.loads((folder / ALIGN_TOML).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    sections = [(values.get(section), key) for section, key in _TAUGHT]
    named = [table.get(key) for table, key in sections if isinstance(table, Mapping)]
    return [folder / place for place in named if isinstance(place, str)]


def _folders(path: Path) -> Iterator[Sequence[Path]]:
    """Yield the folders above a file by its own name, and where links lead."""
    yield path.absolute().parents
    if path.resolve() != path.absolute():
        yield path.resolve().parents


def _require_no_kit(path: Path) -> None:
    for folder in (folder for above in _folders(path) for folder in above):
        if (folder / _KIT).exists():
            raise _refused(path, f"it lies in the kit {folder}")


def _require_no_ratings(path: Path) -> None:
    """Refuse what `fedllm rate` keeps, whatever it is called: its first line says what it is."""
    try:
        with path.open("rb") as file:
            first = read_object(file.readline(_LONGEST_LINE))
    except (OSError, ValueError):
        return
    if str(first.get("format", "")).startswith("fedllm."):
        raise _refused(path, "fedllm wrote it at a site, with what raters there saw")


def _require_no_policy_names(path: Path) -> None:
    """Refuse what a site's policy beside the file, or one folder above, names as its records."""
    for folder in (folder for above in _folders(path) for folder in above[:2]):
        for policy in sorted(folder.glob("*.toml")):
            try:
                values = tomllib.loads(policy.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            data = values.get("data")
            if isinstance(data, Mapping) and isinstance(data.get("train"), str):
                try:
                    named = resolve_location(data["train"], folder, "data.train")
                except ConfigError:
                    continue
                if "task" in values or values.keys() & {"budget", "allow"}:
                    _require_other(path, named, f"data.train of {policy}")


def _require_other(path: Path, location: str, named: str) -> None:
    """Refuse a file that is one of those that a location names, or holds the same bytes."""
    if "://" in location:
        return
    try:
        theirs = [other for other in data_files(location) if other.exists()]
        size = path.stat().st_size
        same = any(
            path.samefile(other)
            or (other.stat().st_size == size and file_sha256(other) == file_sha256(path))
            for other in theirs
        )
    except (FedllmError, OSError):
        # Not here any more, which says nothing.
        return
    if same:
        raise _refused(path, f"it is {named}")


def _require_prompts_alone(
    path: Path, column: str, own: set[str], configs: Sequence[RunConfig]
) -> None:
    forbidden = {*_OF_RECORDS, *(name for one in configs for name in _columns_of(one))} - own
    columns = ColumnMap({"text": column}, {name: name for name in forbidden}, frozenset(["text"]))
    found: set[str] = set()
    for fields in _fields(path, columns):
        found |= {name for name in fields if name.lower() in forbidden or name in forbidden}
    if found - own:
        names = ", ".join(repr(name) for name in sorted(found - own))
        raise _refused(path, f"with {names} its rows are records, and not prompts alone")


def _fields(path: Path, columns: ColumnMap) -> Iterator[Iterable[str]]:
    """Yield the names of what each row has."""
    if path.name.lower().endswith(".parquet"):
        # Of its rows, columns in another spelling are not read.
        yield parquet_columns(path)
        return
    yield from (row.fields for row in rows_asked(path, columns))


def _columns_of(config: RunConfig) -> set[str]:
    """Return what a run's records have beside what people ask."""
    data = config.data
    read = [column.name for column in task_of(config).columns(data).values()]
    # The first is what is asked.
    return {name for name in (*read[1:], data.unit) if name is not None}


def _require_other_texts(asked: Sequence[Asked], config: RunConfig) -> bool:
    """Refuse prompts of records; tell whether all records that lie here were looked at."""
    if "://" in config.data.train:
        return True
    try:
        size = sum(path.stat().st_size for path in data_files(config.data.train))
    except (FedllmError, OSError):
        # They lie elsewhere, as in every deployment.
        return True
    if size > _MOST_BYTES:
        return False
    try:
        records = task_of(config).read(config.data.train, config.site_data)
    except (FedllmError, OSError):
        return False
    theirs = {_plain(text) for one in records for text in _texts_of(one.values)}
    # A prompt by itself, behind its context, or the context alone: each would be of a record.
    single = {tuple(map(_plain, (one.text, one.context, one.whole))) for one in asked}
    shared = sum(any(text and text in theirs for text in texts) for texts in single)
    if shared > _MOST_SHARED * len(single):
        raise RefusedError(
            f"{shared} of the {len(single)} prompts stand in the records that the run "
            f"{config.name} trained on",
            _PUBLIC,
        )
    return True


def _texts_of(values: Mapping[str, str]) -> Iterator[str]:
    """Yield what a record holds, and what stands in it together or in lists."""
    yield from values.values()
    if "prompt" in values and "context" in values:
        yield question(values["prompt"], values["context"])
    if "answers" in values:
        yield from json.loads(values["answers"])


def _plain(value: Any) -> str:
    return seen(str(value)).casefold()
