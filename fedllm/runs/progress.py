"""What happens in a run, one line each in ``progress.jsonl``, for those who watch from elsewhere.

The lines serve watchers alone: nothing is resumed or audited from them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig
from fedllm.files import missing_end
from fedllm.runs.metrics import RoundReport
from fedllm.runs.names import PROGRESS
from fedllm.runs.observer import Observer, Start, StepReport
from fedllm.runs.pace import Pace
from fedllm.runs.plain_json import damaged, parse_object, to_line, to_text

_ANSWERING_S = 5.0


class ProgressFile(Observer):
    """Writes what happens into a run folder's ``progress.jsonl``; `replay` reads it.

    The configuration is left out: ``run.toml`` beside it has it, readable by its owner alone.

    Parameters
    ----------
    folder : Path
        The run folder.
    clock : callable, optional
        Tells the seconds: how many have answered is written every five seconds at most.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = folder / PROGRESS
        self._pace = Pace(_ANSWERING_S, clock)

    def _write(self, kind: str, **values: Any) -> None:
        # Not forced to disk: a line lost in a power cut is missed by nobody.
        line = missing_end(self._path) + to_line({"kind": kind, **values}).encode() + b"\n"
        with self._path.open("ab") as stream:
            stream.write(line)

    def started(self, start: Start) -> None:
        """Note which run it is and how long."""
        names = ("run", "unit", "total", "done", "sites")
        told = {name: getattr(start, name) for name in names}
        # Where nobody has a title, as it was written before there were any.
        self._write("started", **told, **({"titles": dict(start.titles)} if start.titles else {}))

    def note(self, text: str) -> None:
        """Note the message."""
        self._write("note", text=text)

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        """Note who answered."""
        self._write("site_answered", round=round, site=site, answered=answered, sites=sites)

    def answering(self, round: int, phase: str, answered: int, asked: int | None) -> None:
        """Note how many have answered, if it is time."""
        if self._pace.due:
            self._pace.told()
            self._write("answering", round=round, phase=phase, answered=answered, asked=asked)

    def finished_round(self, report: RoundReport) -> None:
        """Note the round's figures."""
        self._write("finished_round", report=report.model_dump())

    def advanced(self, report: StepReport) -> None:
        """Note how far pretraining is."""
        self._write("advanced", report=asdict(report))


def replay(line: bytes, where: str, config: RunConfig, observer: Observer) -> None:
    """Tell an observer what a line of ``progress.jsonl`` says, also one of an earlier version.

    Parameters
    ----------
    line : bytes
        Without its end.
    where : str
        Words for its place.
    config : RunConfig
        Of the run.
    observer : Observer
        Hears it.

    Raises
    ------
    FedllmError
        If the line is damaged; names it.
    """
    remedy = "the run itself goes on; see its state with fedllm server status"
    value = parse_object(to_text(line, where), where, nan=True)
    kind = value.get("kind")
    try:
        if kind == "started":
            observer.started(
                Start(
                    str(value.get("run", "")),
                    config,
                    "rounds",
                    int(value["total"] if "total" in value else value["rounds"]),
                    int(value["done"]),
                    int(value["sites"]),
                    {str(k): str(v) for k, v in dict(value.get("titles", {})).items()},
                )
            )
        elif kind == "note":
            observer.note(str(value["text"]))
        elif kind == "site_answered":
            counts = (int(value[name]) for name in ("answered", "sites"))
            observer.site_answered(int(value["round"]), str(value["site"]), *counts)
        elif kind == "answering":
            asked = None if value["asked"] is None else int(value["asked"])
            told = int(value["round"]), str(value["phase"]), int(value["answered"])
            observer.answering(*told, asked)
        elif kind == "finished_round":
            observer.finished_round(RoundReport.parse(dict(value["report"]), where))
        elif kind == "advanced":
            known = {item.name for item in fields(StepReport)}
            report = dict(value["report"])
            observer.advanced(StepReport(**{k: v for k, v in report.items() if k in known}))
        elif not isinstance(kind, str):
            raise KeyError("kind")
    except (KeyError, TypeError, ValueError, ArithmeticError):
        raise damaged(where, "is no event of a run", remedy) from None
