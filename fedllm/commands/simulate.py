"""``fedllm simulate``: a federated run on this machine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer

from fedllm.commands.base_model import with_base_model
from fedllm.config import load_run_config, load_site_policy
from fedllm.errors import FedllmError


class Engine(StrEnum):
    """What carries the messages of a simulation."""

    inprocess = "inprocess"
    ray = "ray"


def simulate(
    run: Path = typer.Argument(help="The run configuration (TOML)."),
    override: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Override a key, e.g. --set privacy.epsilon=3."
    ),
    out: Path | None = typer.Option(None, help="Run folder; runs/<name> when left out."),
    engine: Engine = typer.Option(Engine.inprocess, help="What carries the messages."),
    resume: bool = typer.Option(False, help="Go on after the last finished round."),
    policy: Path | None = typer.Option(None, help="A site.toml that every site follows."),
    ledgers: Path | None = typer.Option(
        None, help="Folder of the sites' ledgers, to share budgets between runs."
    ),
    json_output: bool = typer.Option(False, "--json", help="Print summary.json at the end."),
) -> None:
    """Run a federated fine-tuning on this machine, with simulated sites."""
    config = with_base_model(load_run_config(run, override))
    site_policy = load_site_policy(policy) if policy else None

    from server.observer import default_observer
    from server.simulation import simulate as run_simulation

    folder = out or Path("runs") / config.name
    try:
        summary = run_simulation(
            config,
            folder,
            engine=engine.value,
            resume=resume,
            policy=site_policy,
            ledgers=ledgers,
            observer=default_observer(),
        )
    except KeyboardInterrupt:
        raise FedllmError(
            f"interrupted; finished rounds are kept in {folder}, a round that was begun stays "
            "charged",
            "go on with the same command and --resume",
        ) from None
    if json_output:
        print(summary.model_dump_json(indent=2))
    else:
        print(summary.describe(folder))
