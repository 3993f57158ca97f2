"""``fedllm simulate``: a federated run on this machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import typer

from fedllm.commands import options, watching
from fedllm.commands.base_model import with_base_model
from fedllm.config import load_run_config, load_site_policy
from fedllm.errors import InterruptedRunError


class Engine(StrEnum):
    """What carries the messages of a simulation."""

    inprocess = "inprocess"
    ray = "ray"


def simulate(
    run: Path = typer.Argument(metavar="RUN.toml", help="The run configuration (a TOML file)."),
    override: list[str] = options.SET,
    out: Path | None = typer.Option(
        None, help="Folder for the run's results; runs/<name> when left out."
    ),
    engine: Engine = typer.Option(
        Engine.inprocess, help="Run the sites in this one process, or side by side with Ray."
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with a run that was broken off, after its last full round."
    ),
    policy: Path | None = typer.Option(
        None,
        help="What every simulated site allows (a site.toml); left out, what the run asks for.",
    ),
    ledgers: Path | None = typer.Option(
        None, help="Folder of the sites' privacy ledgers, for runs that share one budget."
    ),
    tensorboard: Path | None = watching.TENSORBOARD,
    json_output: bool = options.SUMMARY,
) -> None:
    """Fine-tune with simulated sites, all on this machine."""
    config = load_run_config(run, override)
    site_policy = load_site_policy(policy) if policy else None

    from fedllm.runs.folder import check_folder
    from fedllm.runs.names import RUN_TOML
    from fedllm.runs.terminal import terminal_observer
    from fedllm_server.simulation import simulate as run_simulation

    folder = out or Path("runs") / config.name
    # Before a base model is pretrained for it.
    check_folder(folder, resume)
    given = {"--out": out, "--policy": policy, "--ledgers": ledgers, "--tensorboard": tensorboard}
    following = watching.trackers(tensorboard)
    try:
        config = with_base_model(config)
        summary = run_simulation(
            config,
            folder,
            engine=engine.value,
            resume=resume,
            policy=site_policy,
            ledgers=ledgers,
            observers=[terminal_observer(), *following],
        )
    except KeyboardInterrupt:
        if not (folder / RUN_TOML).exists():
            raise InterruptedRunError(
                "interrupted before the run began; nothing was charged",
                "begin again with the same command",
            ) from None
        raise InterruptedRunError(
            f"interrupted; finished rounds are kept in {folder}, a round that was begun stays "
            "charged",
            f"go on with: {_resuming(run, override, engine, given)}",
        ) from None
    if json_output:
        print(json.dumps(summary.model_dump(mode="json"), indent=2))
    else:
        print(summary.describe(folder))


def _resuming(
    run: Path, overrides: list[str], engine: Engine, given: Mapping[str, Path | None]
) -> str:
    """Return the command that goes on with a run, whole: without its policy it would be another."""
    words = ["fedllm", "simulate", str(run)]
    for override in overrides:
        key, _, value = override.partition("=")
        # A database's address may hold a password.
        words += ["--set", f"{key}=..." if "://" in value else override]
    for option, path in given.items():
        words += [option, str(path)] if path is not None else []
    words += ["--engine", engine.value] if engine is not Engine.inprocess else []
    return shlex.join([*words, "--resume"])
