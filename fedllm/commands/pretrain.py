"""``fedllm pretrain``: public text to a checkpoint that sites fine-tune."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import typer

from fedllm.commands import watching
from fedllm.errors import InterruptedRunError
from fedllm.pretraining.config import load_pretrain_config
from fedllm.pretraining.folder import check_output
from fedllm.pretraining.selection import check_corpus
from fedllm.runs.names import TOKENS


def pretrain(
    run: Path = typer.Argument(
        metavar="RUN.toml", help="The pretraining configuration (a TOML file)."
    ),
    override: list[str] = typer.Option(
        [],
        "--set",
        metavar="KEY=VALUE",
        help="Use another value than the file's, e.g. --set training.tokens=1000000; may be "
        "repeated.",
    ),
    out: Path | None = typer.Option(
        None, help="Folder for the run's results; runs/<name> when left out."
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with a run that was broken off, from its last saved state."
    ),
    tensorboard: Path | None = watching.TENSORBOARD,
) -> None:
    """Pretrain a model on public text, for sites to fine-tune.

    Use public text only: nothing hides what a pretrained model has read.
    """
    config = load_pretrain_config(run, override)
    folder = out or Path("runs") / config.name
    # Whatever can be refused is refused before torch is loaded.
    check_output(config, folder, resume)
    following = watching.trackers(tensorboard)
    # Whoever finishes or goes on with a run has had its text read already.
    if not (folder / TOKENS / "manifest.json").exists():
        check_corpus(config.data)

    # Threads that wait by sleeping instead of spinning cost next to nothing on an idle machine
    # and are several times faster when others use it too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from fedllm.pretraining.run import run_pretraining
    from fedllm.runs.terminal import terminal_observer

    try:
        model = run_pretraining(config, folder, [terminal_observer(), *following], resume)
    except KeyboardInterrupt:
        words = ["fedllm", "pretrain", str(run), *(w for one in override for w in ("--set", one))]
        for option, path in (("--out", out), ("--tensorboard", tensorboard)):
            words += [option, str(path)] if path else []
        raise InterruptedRunError(
            f"interrupted; text that was read and states that were saved are kept in {folder}",
            f"go on with: {shlex.join([*words, '--resume'])}",
        ) from None
    print(model)
