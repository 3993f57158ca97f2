"""Runs that were handed to a coordinator: one folder each, and what became of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from fedllm.canonical import read_object
from fedllm.config import RunConfig
from fedllm.errors import ConfigError, FedllmError
from fedllm.federation.coordinator.answers import some_of
from fedllm.federation.protocol.refusals import Refusal
from fedllm.files import make_output_folder
from fedllm.identity.titles import shown
from fedllm.locks import is_held
from fedllm.runs import names
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.folder import (
    config_digest,
    require_same_model,
    require_same_public,
    require_same_run,
    write_config,
)
from fedllm.runs.job import ACTIVE, Job, read_job, write_job
from fedllm.runs.record import read_config
from fedllm_server.public_part import public_digest, public_labels, public_records
from fedllm_server.sealing import vault_of


def error_of(job: Job) -> FedllmError:
    """Return the error that ended a run."""
    error = job.error or {"kind": "FedllmError", "message": f"the run was {job.status}"}
    return Refusal(**error).to_error(f"run '{job.name}'")


def runs_folder(kit: Path) -> Path:
    """Return the folder of all runs of a coordinator's kit."""
    return kit / "state" / "runs"


def coordinator_lock(kit: Path) -> Path:
    """Return the lock file of the running coordinator."""
    return kit / "state" / "server.lock"


def who_is_connected(kit: Path) -> str:
    """Say which parties were connected when the running coordinator last looked, and which not.

    Empty where it has not said so yet.
    """
    try:
        nodes = list(read_object((kit / "state" / "status.json").read_bytes())["nodes"])
        there: dict[bool, list[str]] = {True: [], False: []}
        for node in nodes:
            name, title = str(node["name"]), node.get("title")
            who = "the key authority" if name == "authority" else shown(name, {name: title or ""})
            there[bool(node["online"])].append(who)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ""
    words = ((True, "connected"), (False, "not connected"))
    return "; ".join(f"{said}: {some_of(there[online])}" for online, said in words if there[online])


def all_jobs(kit: Path) -> list[tuple[Path, Job]]:
    """Return all runs of a coordinator, the earliest submitted first."""
    root = runs_folder(kit)
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    found = [(folder, job) for folder in folders if (job := read_job(folder)) is not None]
    return sorted(found, key=lambda pair: pair[1].submitted)


def check_submission(kit: Path, name: str, resume: bool) -> Job | None:
    """Refuse what a coordinator cannot take; return the job of that name, if there was one.

    Raises
    ------
    ConfigError
        If a run of that name exists and is not to be resumed, or cannot be.
    """
    folder = runs_folder(kit) / name
    before = read_job(folder)
    if before is not None and before.status in ACTIVE:
        raise ConfigError(f"the run '{name}' is {before.status}", "watch it with --follow")
    if before is not None and not resume:
        raise ConfigError(
            f"there is a run '{name}' already ({before.status})",
            "choose another name (--set name=...), or go on with --resume",
        )
    if before is None and resume:
        raise ConfigError(f"there is no run '{name}' to resume", "leave out --resume")
    if before is not None and before.status == "finished":
        raise ConfigError(f"the run '{name}' is finished", f"its results are in {folder}")
    return before


def submit(kit: Path, config: RunConfig, resume: bool) -> Path:
    """Hand a run to the coordinator of a kit, and return the run's folder.

    Raises
    ------
    ConfigError
        If a run of that name exists and is not to be resumed, or cannot be.
    """
    folder = runs_folder(kit) / config.name
    if check_submission(kit, config.name, resume) is not None:
        _require_same_request(kit, folder, config)
    make_output_folder(folder, "--kit")
    folder.chmod(0o700)
    (folder / names.CANCEL).unlink(missing_ok=True)
    write_config(folder, config)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    write_job(folder, Job(config.name, "queued", now))
    return folder


def _require_same_request(kit: Path, folder: Path, config: RunConfig) -> None:
    state = load_checkpoint(folder / names.CHECKPOINTS, vault_of(kit))
    anew = "choose another name"
    if state is None:
        require_same_run(config_digest(read_config(folder)), config, folder, anew)
        return
    require_same_run(state.config, config, folder, anew)
    # Before the folder's run.toml is written over: what is refused leaves it as it was.
    labels = public_labels(config, public_records(config))
    require_same_public(state, labels, public_digest(config), folder)
    from fedllm.models.checkpoints import checkpoint_folder, fingerprint
    from fedllm.models.contents import held_as

    files = fingerprint(checkpoint_folder(config.model.path))
    held = held_as(files, config.model.quantization, config.model.precision)
    require_same_model(state.model, held, folder)


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
    (folder / names.CANCEL).touch()
    if not is_held(coordinator_lock(kit)):
        write_job(folder, replace(job, status="cancelled"))
