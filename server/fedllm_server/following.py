"""Watch a run of a coordinator from another process, from its start or in the middle."""

from __future__ import annotations

import time
from pathlib import Path
from typing import BinaryIO

from fedllm.config import RunConfig
from fedllm.errors import ConfigError, FedllmError
from fedllm.runs.job import ACTIVE, Job, read_job
from fedllm.runs.names import PROGRESS
from fedllm.runs.observer import Observer
from fedllm.runs.pace import Pace
from fedllm.runs.progress import replay
from fedllm.runs.record import read_config

_POLL_S, _QUIET_S = 0.3, 60.0
_STILL = {
    "queued": "the coordinator has not begun the run: either none is running, or another run is "
    "under way",
    "running": "nothing new for a minute; the run goes on",
}


def follow(folder: Path, observer: Observer) -> Job:
    """Tell an observer all that a run has to say until it ends, and return how it ended.

    After each minute without a word, it hears how the run stands.

    Raises
    ------
    ConfigError
        If there is no run in ``folder``.
    """
    path = folder / PROGRESS
    stream: BinaryIO | None = None
    kept, number = b"", 0
    quiet = Pace(_QUIET_S, time.monotonic)
    try:
        while True:
            job = read_job(folder)
            if job is None:
                raise ConfigError(f"there is no run in {folder}", "see fedllm server status")
            if stream is None and path.exists():
                stream = path.open("rb")
            # Read after the status: what an ended run said last is not missed.
            kept += stream.read() if stream is not None else b""
            *lines, kept = kept.split(b"\n")
            for line in lines:
                number += 1
                _tell(line, f"{path}, line {number}", read_config(folder), observer)
                quiet.told()
            if job.status not in ACTIVE:
                return job
            if quiet.due:
                observer.note(f"{_STILL[job.status]}: see `fedllm server status`")
                quiet.told()
            time.sleep(_POLL_S)
    finally:
        observer.close()
        if stream is not None:
            stream.close()


def _tell(line: bytes, where: str, config: RunConfig, observer: Observer) -> None:
    try:
        replay(line, where, config, observer)
    except FedllmError as error:
        # A crash cut it off. Who watches loses a line and not the run.
        observer.note(f"{error.message}; the line is left out")
