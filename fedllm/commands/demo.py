"""``fedllm demo``: the whole story on made-up data."""

from __future__ import annotations

import shlex
from pathlib import Path

import typer

from fedllm.errors import InterruptedRunError


def demo(
    out: Path = typer.Option(
        Path("runs/demo"),
        help="Folder for all that the demo writes; an earlier demo in it is replaced.",
    ),
    quick: bool = typer.Option(
        False,
        "--quick",
        help="Show in about a minute that all parts work; too short to learn anything.",
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Go on with a demo that was broken off, instead of replacing it."
    ),
) -> None:
    """See the whole story on made-up data, in five to ten minutes.

    Makes up hospitals, pretrains a model, fine-tunes it privately, attacks it, and writes a
    report.
    """
    try:
        _tell(out, quick, resume)
    except KeyboardInterrupt:
        from fedllm.demo.folder import is_demo

        if not is_demo(out):
            raise
        words = ["fedllm", "demo", "--out", str(out), *(["--quick"] if quick else [])]
        raise InterruptedRunError(
            f"interrupted; what is finished is kept in {out}",
            f"go on with: {shlex.join([*words, '--resume'])} (without --resume, the demo begins "
            "anew)",
        ) from None


def _tell(out: Path, quick: bool, resume: bool) -> None:
    from fedllm.demo.folder import claim
    from fedllm.files import make_output_folder

    # Whatever can be refused is refused before torch is loaded, and leaves no folder behind.
    if resume:
        claim(out, quick, resume)
    make_output_folder(out, "--out")

    from fedllm.demo.story import FULL, QUICK, tell
    from fedllm.demo.telling import default_teller
    from fedllm.pretraining.run import run_pretraining
    from fedllm.runs.terminal import terminal_observer
    from fedllm_server.simulation import simulate

    tell(
        out,
        QUICK if quick else FULL,
        pretrain=lambda config, folder, going_on: run_pretraining(
            config, folder, [terminal_observer()], going_on
        ),
        simulate=lambda config, folder, going_on: simulate(
            config, folder, resume=going_on, observers=[terminal_observer()]
        ),
        teller=default_teller(),
        resume=resume,
    )
