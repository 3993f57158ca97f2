"""What became of a run that was handed to a coordinator: ``job.json`` and ``outcome.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from fedllm.errors import ConfigError, FedllmError
from fedllm.files import write_json
from fedllm.runs.names import JOB, OUTCOME
from fedllm.runs.plain_json import read_object

Status = Literal["queued", "running", "finished", "failed", "cancelled"]
ACTIVE: tuple[Status, ...] = ("queued", "running")


@dataclass(frozen=True)
class Job:
    """A run at a coordinator; ``job.json`` in its folder.

    Attributes
    ----------
    name : str
        The run's name and its folder's.
    status : str
        "queued", "running", "finished", "failed" or "cancelled".
    submitted : str
        ISO 8601, UTC.
    starts : int
        How often its process was started since it was submitted or resumed.
    error : dict, optional
        Why it failed: "kind", "message", "remedy".
    """

    name: str
    status: Status
    submitted: str
    starts: int = 0
    error: dict[str, str] | None = None


def read_job(folder: Path) -> Job | None:
    """Read ``job.json``; None when there is none. Keys of a later version are left out.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    path = folder / JOB
    if not path.exists():
        return None
    known = {item.name for item in fields(Job)}
    try:
        value = {k: v for k, v in read_object(path).items() if k in known}
        job = Job(**value)
        _check(job)
    except (FedllmError, TypeError):
        raise ConfigError(f"{path} is damaged", "remove the run's folder") from None
    return job


def _check(job: Job) -> None:
    texts = (job.name, job.status, job.submitted)
    if not all(isinstance(text, str) for text in texts) or job.status not in get_args(Status):
        raise TypeError("a text is none")
    if not isinstance(job.starts, int) or not _is_error(job.error):
        raise TypeError("not as it was written")


def write_job(folder: Path, job: Job) -> None:
    """Write ``job.json``."""
    write_json(folder / JOB, asdict(job))


def write_outcome(folder: Path, error: Mapping[str, str] | None) -> None:
    """Write how the process of a run ended: well, or with an error's kind, message and remedy."""
    write_json(folder / OUTCOME, {"error": error})


def read_outcome(folder: Path) -> tuple[dict[str, str] | None] | None:
    """Read how the process of a run ended; None where it died without a word."""
    try:
        error = read_object(folder / OUTCOME)["error"]
    except (FedllmError, KeyError):
        return None
    return (error,) if _is_error(error) else None


def _is_error(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and {"kind", "message"} <= set(value) <= {"kind", "message", "remedy"}
        and all(isinstance(text, str) for text in value.values())
    )
