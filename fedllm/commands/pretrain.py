"""``fedllm pretrain``: public text to a checkpoint that sites fine-tune."""

from __future__ import annotations

import os
from pathlib import Path

import typer

from fedllm.pretraining.config import load_pretrain_config


def pretrain(
    run: Path = typer.Argument(help="The pretraining configuration (TOML)."),
    override: list[str] = typer.Option(
        [], "--set", metavar="KEY=VALUE", help="Override a key, e.g. --set training.tokens=1000000."
    ),
    out: Path | None = typer.Option(None, help="Run folder; runs/<name> when left out."),
    resume: bool = typer.Option(False, help="Go on after the newest checkpoint."),
) -> None:
    """Pretrain a Transformer on public text, centrally."""
    config = load_pretrain_config(run, override)

    # Before torch is loaded: threads that wait by sleeping instead of spinning cost next to
    # nothing on an idle machine and are several times faster when others use it too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fedllm.pretraining.progress import default_observer
    from fedllm.pretraining.run import run_pretraining

    model = run_pretraining(config, out or Path("runs") / config.name, default_observer(), resume)
    print(model)
