"""Runs that were handed to a coordinator: one folder each, and what became of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fedllm.config import RunConfig, load_run_config, to_toml
from fedllm.errors import ConfigError, FedllmError
from fedllm.federation.protocol.refusals import Refusal
from fedllm.files import write_bytes, write_json
from fedllm.locks import is_held

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

    def to_error(self) -> FedllmError:
        """Return the error that ended the run."""
        error = self.error or {"kind": "FedllmError", "message": f"the run was {self.status}"}
        return Refusal(**error).to_error(f"run '{self.name}'")


def runs_folder(kit: Path) -> Path:
    """Return the folder of all runs of a coordinator's kit."""
    return kit / "state" / "runs"


def coordinator_lock(kit: Path) -> Path:
    """Return the lock file of the running coordinator."""
    return kit / "state" / "server.lock"


def read_job(folder: Path) -> Job | None:
    """Read ``job.json``; None when there is none.

    Raises
    ------
    ConfigError
        If it is damaged.
    """
    path = folder / "job.json"
    try:
        job = Job(**json.loads(path.read_text(encoding="utf-8")))
        # An error that cannot be told is damage too.
        return job if job.error is None else replace(job, error=Refusal(**job.error).model_dump())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        raise ConfigError(f"{path} is damaged", "remove the run's folder") from None


def write_job(folder: Path, job: Job) -> None:
    """Write ``job.json``."""
    write_json(folder / "job.json", asdict(job))


def all_jobs(kit: Path) -> list[tuple[Path, Job]]:
    """Return all runs of a coordinator, the earliest submitted first."""
    root = runs_folder(kit)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [(folder, job) for folder in folders if (job := read_job(folder)) is not None]
    return sorted(found, key=lambda pair: pair[1].submitted)


def submit(kit: Path, config: RunConfig, resume: bool) -> Path:
    """Hand a run to the coordinator of a kit, and return the run's folder.

    Raises
    ------
    ConfigError
        If a run of that name exists and is not to be resumed, or cannot be.
    """
    folder = runs_folder(kit) / config.name
    before = read_job(folder)
    if before is not None and before.status in ACTIVE:
        raise ConfigError(f"the run '{config.name}' is {before.status}", "watch it with --follow")
    if before is not None and not resume:
        raise ConfigError(
            f"there is a run '{config.name}' already ({before.status})",
            "choose another name (--set name=...), or go on with --resume",
        )
    if before is None and resume:
        raise ConfigError(f"there is no run '{config.name}' to resume", "leave out --resume")
    if before is not None and before.status == "finished":
        raise ConfigError(f"the run '{config.name}' is finished", f"its results are in {folder}")
    if before is not None and load_run_config(folder / "run.toml") != config:
        raise ConfigError(
            f"{folder} was begun with another configuration than the one given now",
            f"resume with {folder / 'run.toml'}, or choose another name",
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "cancel").unlink(missing_ok=True)
    # A data URL may hold a password.
    write_bytes(folder / "run.toml", to_toml(config).encode(), mode=0o600)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    write_job(folder, Job(config.name, "queued", now))
    return folder


def cancel(kit: Path, name: str) -> None:
    """Ask the coordinator to stop a run for good.

    Raises
    ------
    ConfigError
        If it is not under way.
    """
    folder = runs_folder(kit) / name
    job = read_job(folder)
    if job is None or job.status not in ACTIVE:
        raise ConfigError(f"the run '{name}' is not under way", "see fedllm server status")
    (folder / "cancel").touch()
    if not is_held(coordinator_lock(kit)):
        write_job(folder, replace(job, status="cancelled"))
