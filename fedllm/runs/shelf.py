"""Several run folders at once: which there are, and in what two or more of them differ."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from fedllm.config import RunConfig
from fedllm.config.parsing import without_passwords
from fedllm.errors import ConfigError, FedllmError
from fedllm.runs.metrics import read_reports
from fedllm.runs.names import ALIGN_TOML, INPUTS, METRICS, RUN_TOML, SUMMARY
from fedllm.runs.record import RunFolder, read_config, read_run_folder
from fedllm.runs.summary import read_summary

Kind = Literal["run", "alignment", "pretraining"]
# Folders of runs lie in folders; what is deeper belongs to something else.
_DEEPEST = 3
# Of this machine, or a name: nothing comes out otherwise by them.
_NO_SETTINGS = ("name", "engine", "card")
_TITLES = {
    "promised": "epsilon promised",
    "epsilon": "epsilon spent at most",
    "colluders_epsilon": "epsilon, all others collude",
    "unit": "protects each",
    "bytes_up": "MB up",
    "bytes_down": "MB down",
    "path": "base model",
    "method": "adapter",
    "adapter_parameters": "trained values",
    "sent_parameters": "sent a round",
}
_MEGABYTES = ("bytes_up", "bytes_down")
# In the order in which people look for them.
_PRIVACY = ("promised", "epsilon", "colluders_epsilon", "delta", "unit", "noise")


@dataclass(frozen=True, slots=True)
class Listed:
    """A run folder in a list.

    Attributes
    ----------
    folder : Path
        Where it lies.
    kind : {"run", "alignment", "pretraining"}
        What was done in it.
    name, task : str
        As configured; empty where they cannot be read.
    state : {"finished", "begun", "damaged"}
        Whether it wrote its summary, or cannot be read.
    done, rounds : int
        Rounds that are done, and planned; 0 where there are none or nobody knows.
    metrics : mapping of str to float
        Of the last evaluation on the public test file.
    epsilon : float, optional
        Spent at most at a site so far; None without privacy, or where only the sites know.
    private : bool
        Whether it promises anything.
    started : str
        UTC, ISO 8601; empty where it is not known.
    problem : str
        What is damaged.
    """

    folder: Path
    kind: Kind
    name: str = ""
    task: str = ""
    state: Literal["finished", "begun", "damaged"] = "begun"
    done: int = 0
    rounds: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    epsilon: float | None = None
    private: bool = False
    started: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """What several finished runs say of the same things.

    Attributes
    ----------
    runs : tuple of str
        Their folders.
    settings : mapping of str to tuple
        Keys of ``run.toml`` in which they differ, with the value of each; without user and
        password of any URL.
    metrics, privacy, cost, model : mapping of str to tuple
        Figures of each; None where a run has none.
    notes : tuple of str
        What makes figures hard to compare.
    """

    runs: tuple[str, ...]
    settings: Mapping[str, tuple[Any, ...]]
    metrics: Mapping[str, tuple[Any, ...]]
    privacy: Mapping[str, tuple[Any, ...]]
    cost: Mapping[str, tuple[Any, ...]]
    model: Mapping[str, tuple[Any, ...]]
    notes: tuple[str, ...]


def listed(folders: Sequence[Path]) -> list[Listed]:
    """Look at run folders, and at those in folders of runs; reads no record and no weight.

    Raises
    ------
    ConfigError
        If a folder is not there, or there is no run in any.
    """
    return [_listed(path) for path in found_in(folders)]


def found_in(folders: Sequence[Path]) -> list[Path]:
    """Return the run folders among some folders, and in them.

    Raises
    ------
    ConfigError
        If a folder is not there, or there is no run in any.
    """
    found = [run for folder in folders for run in runs_below(folder)]
    if not found:
        raise ConfigError(
            f"there is no run in {', '.join(map(str, folders))}",
            "give the folder of a run, or one that holds folders of runs",
        )
    return list(dict.fromkeys(found))


def runs_below(folder: Path) -> Iterator[Path]:
    """Yield the run folders in a folder, to three levels; the folder itself where it is one.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}", "give a folder of runs, such as runs")
    deepest = len(folder.parts) + _DEEPEST
    for place, inner, files in os.walk(folder):
        path = Path(place)
        if RUN_TOML in files or ALIGN_TOML in files:
            yield path
            inner.clear()
        # Sorted in place: so are the folders gone through.
        inner[:] = sorted(inner) if len(path.parts) < deepest else []


def kind_of(path: Path) -> Kind:
    """Return what was done in a run's folder, by the files that it has."""
    if (path / ALIGN_TOML).exists():
        return "alignment"
    return "pretraining" if (path / INPUTS).exists() else "run"


def _listed(path: Path) -> Listed:
    kind = kind_of(path)
    try:
        return _run(path) if kind == "run" else _other(path, kind)
    except FedllmError as error:
        return Listed(path, kind, state="damaged", problem=str(error.message))


def _run(path: Path) -> Listed:
    config = read_config(path)
    reports = read_reports(path / METRICS) if (path / METRICS).exists() else []
    measured = [report.metrics for report in reports if report.metrics]
    finished = (path / SUMMARY).exists()
    epsilon = reports[-1].largest_epsilon if reports and config.private else None
    return Listed(
        path,
        "run",
        config.name,
        config.task,
        "finished" if finished else "begun",
        reports[-1].round if reports else 0,
        config.rounds.count,
        _finite(measured[-1] if measured else {}),
        epsilon if epsilon is not None and isfinite(epsilon) else None,
        config.private,
        reports[0].started if reports else "",
    )


def _other(path: Path, kind: Kind) -> Listed:
    """Return what is known of what is no federated run: its name, and whether it has ended."""
    if not (path / SUMMARY).exists():
        return Listed(path, kind, path.name)
    if kind == "pretraining":
        return Listed(path, kind, path.name, state="finished")
    summary = read_summary(path)
    figures = _finite(summary.metrics)
    return Listed(
        path, kind, summary.run, summary.task, "finished", metrics=figures, started=summary.started
    )


def _finite(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None and isfinite(value)}


def compare(folders: Sequence[Path]) -> Compared:
    """Put finished runs beside one another.

    Raises
    ------
    ConfigError
        If there are fewer than two, or one is no finished run of `fedllm simulate` or `fedllm
        run`; says what to give instead.
    """
    paths = list(dict.fromkeys(folders))
    if len(paths) < 2:
        raise ConfigError("one run has nothing to be compared with", "give two folders or more")
    for path in paths:
        if path.is_dir() and (kind := kind_of(path)) != "run":
            raise ConfigError(
                f"{path} is {'an alignment' if kind == 'alignment' else 'a pretraining run'}, and "
                "has other settings and figures than federated runs",
                "give runs of fedllm simulate or fedllm run",
            )
    runs = [read_run_folder(path) for path in paths]
    summaries = [run.summary for run in runs]
    settings = _settings(runs)
    return Compared(
        tuple(map(str, paths)),
        settings,
        _metrics(runs),
        _rows([run.section("privacy") for run in runs], _PRIVACY),
        {
            "rounds": tuple(one.get("rounds") for one in summaries),
            "sites": tuple(one.get("sites") for one in summaries),
            "seconds": tuple(run.section("seconds").get("total") for run in runs),
            "bytes_up": tuple(one.get("bytes_up") for one in summaries),
            "bytes_down": tuple(one.get("bytes_down") for one in summaries),
        },
        _rows(
            [run.section("model") for run in runs],
            ("path", "method", "adapter_parameters", "sent_parameters"),
        ),
        tuple(_notes(runs, settings)),
    )


def title_of(key: str) -> str:
    """Return what people call a key of `Compared`."""
    return _TITLES.get(key, key)


def in_words(key: str, value: Any) -> str:
    """Write a value of `Compared` as it stands under `title_of`."""
    if value is None:
        return "none"
    if value and key in _MEGABYTES:
        value = value / 1e6
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _rows(tables: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    rows = {key: tuple(table.get(key) for table in tables) for key in keys}
    return {key: row for key, row in rows.items() if any(value is not None for value in row)}


def _settings(runs: Sequence[RunFolder]) -> dict[str, tuple[Any, ...]]:
    """Return the keys in which the runs differ."""
    flat = [settings_of(run.config) for run in runs]
    rows = {key: tuple(one.get(key) for one in flat) for one in flat for key in one}
    return {
        key: tuple(without_passwords(list(row)))
        for key, row in rows.items()
        if any(value != row[0] for value in row)
    }


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Return each key that decides what comes out, such as "privacy.epsilon", and its value.

    URLs are as they are, with their passwords: two runs that differ in these alone do differ.
    """
    return _flat(config.model_dump(mode="json", exclude=set(_NO_SETTINGS)))


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = {f"{key}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {}
        found |= inner or {key: value}
    return found


def _metrics(runs: Sequence[RunFolder]) -> dict[str, tuple[Any, ...]]:
    names = dict.fromkeys(name for run in runs for name in run.last_metrics)
    rows: dict[str, tuple[Any, ...]] = {}
    for name in names:
        before = tuple(run.first_metrics.get(name) for run in runs)
        if any(value is not None for value in before) and name != "records":
            rows[f"{name}, before"] = before
        rows[name] = tuple(run.last_metrics.get(name) for run in runs)
    return rows


def _notes(runs: Sequence[RunFolder], settings: Mapping[str, Any]) -> Iterator[str]:
    """Say what speaks against comparing figures as they are."""
    counts = {run.last_metrics.get("records") for run in runs}
    if "task" in settings:
        yield "the runs have other tasks: their figures are of other things"
    elif {"data.test", "data.test_limit"} & set(settings) or len(counts) > 1:
        yield "the test files are not the same, or not as much of them: so may figures differ"
    if len({str(run.section("model").get("fingerprint")) for run in runs}) > 1:
        yield "the base models are not the same"
    if any(not run.config.private for run in runs) and any(run.config.private for run in runs):
        yield "some of the runs are not private"
    units = {run.config.unit for run in runs if run.config.private}
    if len(units) > 1:
        yield "epsilon is of a record in one run and of a person in another: they do not compare"
    versions = {str(run.section("versions").get("fedllm")) for run in runs}
    if len(versions) > 1:
        yield f"they were made by other versions of fedllm: {', '.join(sorted(versions))}"
    if "seed" not in settings:
        yield "one run each tells little: a difference may be chance; repeat with other seeds"
