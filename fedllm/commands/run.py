"""``fedllm run``: hand a run to the coordinator of this machine, and watch it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import options, watching
from fedllm.commands.base_model import with_base_model
from fedllm.config import load_run_config
from fedllm.errors import ConfigError, InterruptedRunError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.runs.observer import Observer


def run(
    configuration: Path = typer.Argument(
        metavar="RUN.toml", help="The run configuration (a TOML file)."
    ),
    kit: Path = typer.Option(
        ..., metavar="KIT", help="The coordinator's kit (the folder with its keys)."
    ),
    override: list[str] = options.SET,
    detach: bool = typer.Option(
        False, "--detach", help="Do not wait for the end; the run goes on."
    ),
    follow: bool = typer.Option(False, "--follow", help="Watch the run that was started before."),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with a run that failed or was cancelled."
    ),
    cancel: bool = typer.Option(False, "--cancel", help="Stop the run that was started before."),
    tensorboard: Path | None = watching.TENSORBOARD,
    json_output: bool = options.SUMMARY,
) -> None:
    """Fine-tune with the sites that are connected.

    Needs a coordinator that runs on this machine. Interrupting this command does not stop the run;
    --follow comes back to it.
    """
    if sum((detach, follow, cancel)) > 1 or (resume and (follow or cancel)):
        raise ConfigError("these options exclude each other", "give one of them")
    from fedllm.identity.kits import read_kit
    from fedllm.locks import is_held
    from fedllm.runs.start import starting_point
    from fedllm_server import jobs
    from fedllm_server.public_part import public_records

    following = watching.trackers(tensorboard)
    # A wrong file is told before a wrong kit.
    load_run_config(configuration, override)
    enrolled = len(read_kit(kit, "coordinator").roster.sites)
    config = load_run_config(configuration, override, enrolled)
    if cancel:
        jobs.cancel(kit, config.name)
        return
    if follow:
        folder = jobs.runs_folder(kit) / config.name
    else:
        jobs.check_submission(kit, config.name, resume)
        # A run whose test file cannot be read is not handed over.
        public_records(config)
        if not resume:
            starting_point(config, None)
        folder = jobs.submit(kit.absolute(), with_base_model(config), resume)
    if not is_held(jobs.coordinator_lock(kit)):
        typer.echo(f"no coordinator is running: fedllm server start --kit {kit}", err=True)
    elif not follow and (words := jobs.who_is_connected(kit)):
        typer.echo(visible(f"{words}; the run needs {config.rounds.min_sites} sites"), err=True)
    if not detach:
        _watch(folder, kit, following, json_output)
    elif json_output:
        print(json.dumps({"run": config.name, "folder": str(folder)}))
    else:
        print(f"handed over; watch it with --follow. The run's folder is {folder}")


def _watch(folder: Path, kit: Path, following: Sequence[Observer], json_output: bool) -> None:
    from fedllm.runs.observer import Observers
    from fedllm.runs.summary import read_summary
    from fedllm.runs.terminal import terminal_observer
    from fedllm_server.following import follow as follow_run
    from fedllm_server.jobs import error_of

    try:
        job = follow_run(folder, Observers.of([terminal_observer()], following))
    except KeyboardInterrupt:
        raise InterruptedRunError(
            "the run goes on", "come back with --follow, stop it with --cancel"
        ) from None
    if job.status != "finished":
        raise error_of(job)
    summary = read_summary(folder)
    print(summary.model_dump_json(indent=2) if json_output else summary.describe(folder))
    if not json_output:
        command = ["fedllm", "server", "release", job.name, "--kit", str(kit)]
        typer.echo(visible(f"give it to the sites: {shlex.join(command)}"), err=True)
