"""The folders that are compared: what each says of itself, before any weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fedllm.canonical import canonical_json, sha256_hex
from fedllm.compression.packing import SUFFIX
from fedllm.config import DataSection, RunConfig, Task
from fedllm.config.task import columns_read, trains_a_head
from fedllm.errors import CheckpointError, ConfigError
from fedllm.exporting.found import find_released
from fedllm.exporting.merged import HEAD_ABOUT
from fedllm.exporting.peft_format import LABELS
from fedllm.models import checkpoints, saved
from fedllm.models.contents import EXPORTED, check_contents, read_object
from fedllm.runs.names import RUN_TOML
from fedllm.runs.record import read_run_folder
from fedllm.serving.exported import is_exported, labels_in

_REMEDY = "copy the folder again, or repeat the command that made it"


@dataclass(frozen=True, eq=False)
class Compressed:
    """A whole model's folder.

    Attributes
    ----------
    name : str
        What it is called in the report.
    folder : Path
    form : str
        The format in which it was written, or how it was made smaller.
    packed : bool
        Whether it must be unpacked to be used.
    task : str
        What the model is for.
    labels : tuple of str
        Empty without a head of labels.
    digest : str
        SHA-256 over all files that count.
    """

    name: str
    folder: Path
    form: str
    packed: bool
    task: Task
    labels: tuple[str, ...]
    digest: str


@dataclass(frozen=True, eq=False)
class Original:
    """The model that others were made of.

    Attributes
    ----------
    whole : Compressed
        The model; of a run, the folder is the run's and not yet a whole model's.
    data : DataSection
        Which columns records have.
    max_length : int
        Tokens that are read of a record.
    config : RunConfig, optional
        The run's, with the base model where it lies here; None where a whole model was given.
    base : str, optional
        As it was given.
    """

    whole: Compressed
    data: DataSection
    max_length: int
    config: RunConfig | None = None
    base: str | None = None


def read_original(location: Path, base: str | None) -> Original:
    """Read what a run, or a whole model, says of itself.

    Raises
    ------
    ConfigError
        If it is neither, or packed, or a whole model with another base.
    CheckpointError
        If a file is damaged.
    """
    if is_exported(location):
        if base is not None:
            raise ConfigError(
                f"{location} is a whole model, with no adapter to put on another base",
                "leave --base out, or give the run's folder",
            )
        whole = _read_compressed(location, location.name)
        if whole.packed:
            raise ConfigError(
                f"{location} is packed, and so cannot be what others were made of",
                "give the run, or the folder that was packed",
            )
        about = read_object(location / EXPORTED)
        return Original(whole, _columns(location, about, whole.task), _length(location, about))
    if not (location / RUN_TOML).exists():
        raise ConfigError(
            f"{location} is neither a finished run nor a whole model of one",
            "give the run's folder, or one that fedllm export RUN --format merged wrote",
        )
    return _read_run(location, base)


def read_variants(original: Original, folders: Sequence[Path]) -> tuple[Compressed, ...]:
    """Read what folders say that were made of the original.

    Raises
    ------
    ConfigError
        If one is named twice, is no whole model, or is of another task or with other labels.
    """
    seen = {original.whole.folder.resolve()}
    names = [folder.name for folder in folders]
    found = []
    for folder in folders:
        if folder.resolve() in seen:
            raise ConfigError(f"{folder} was named twice", "name each model once")
        seen.add(folder.resolve())
        if not is_exported(folder):
            raise ConfigError(
                f"{folder} is no whole model of a run",
                "give folders that fedllm compress, or fedllm export --format merged, wrote",
            )
        twice = names.count(folder.name) > 1 or folder.name == original.whole.name
        variant = _read_compressed(folder, str(folder) if twice else folder.name)
        _require_same_task(original.whole, variant)
        found.append(variant)
    return tuple(found)


def disk_bytes(folder: Path) -> int:
    """Return what a folder's files take together."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _read_run(location: Path, base: str | None) -> Original:
    run, found = read_run_folder(location), find_released(location, base)
    model = run.config.model.model_copy(update={"path": str(found.base)})
    config = run.config.model_copy(update={"model": model})
    prints = checkpoints.fingerprints(found.base)
    digest = {"adapter": str(found.origin["adapter"]), "base": prints.current}
    whole = Compressed(
        location.resolve().name,
        location,
        "merged",
        False,
        config.task,
        labels_in(found.folder / saved.ABOUT) if trains_a_head(config.task) else (),
        sha256_hex(canonical_json(digest)),
    )
    data = config.data.model_copy(update=_NOBODYS)
    return Original(whole, data, config.model.max_length, config, base)


# Records that are looked at here are read row by row, whoever's they are.
_NOBODYS = {"unit": None, "site": None, "group": None, "query": None, "test_limit": None}


def _read_compressed(folder: Path, name: str) -> Compressed:
    packed = any(folder.glob(f"*{SUFFIX}.safetensors"))
    check_contents(folder, weights=False)
    about = read_object(folder / EXPORTED)
    task: Task | None = next((one for one in get_args(Task) if one == about.get("task")), None)
    if task is None:
        raise CheckpointError(f"{folder / EXPORTED} does not say what the model is for", _REMEDY)
    labels: tuple[str, ...] = ()
    if trains_a_head(task):
        path = folder / (HEAD_ABOUT if (folder / HEAD_ABOUT).exists() else LABELS)
        labels = labels_in(path)
    digest = checkpoints.fingerprints(folder).current
    return Compressed(name, folder, str(about.get("format", "")), packed, task, labels, digest)


def _require_same_task(original: Compressed, variant: Compressed) -> None:
    if variant.task != original.task:
        raise ConfigError(
            f"{variant.folder} is for {variant.task}, and {original.folder} for {original.task}",
            "compare models that were made of one run",
        )
    if variant.labels != original.labels:
        count = len(set(variant.labels) ^ set(original.labels))
        differ = f"{count} of them are in one alone" if count else "their order differs"
        raise ConfigError(
            f"{variant.folder} has other labels than {original.folder}: {differ}",
            "compare models that were made of one run",
        )


def _columns(folder: Path, about: dict[str, Any], task: Task) -> DataSection:
    """Return which columns the run read; an older export names the first one alone."""
    known = columns_read(task)
    named = about.get("columns", {next(iter(known)): about.get("column")})
    right = isinstance(named, dict) and all(
        role in known and isinstance(column, str) for role, column in named.items()
    )
    if not right:
        raise CheckpointError(f"{folder / EXPORTED} does not say which columns it read", _REMEDY)
    return DataSection(train="", **named)


def _length(folder: Path, about: dict[str, Any]) -> int:
    length = about.get("max_length")
    if type(length) is not int or length < 1:
        raise CheckpointError(f"{folder / EXPORTED} does not say how long records were", _REMEDY)
    return length
