"""``fedllm demo``: the whole story on made-up data."""

from __future__ import annotations

from pathlib import Path

import typer


def demo(
    out: Path = typer.Option(
        Path("runs/demo"),
        help="Folder for all that the demo writes; an earlier demo in it is replaced.",
    ),
    quick: bool = typer.Option(
        False,
        "--quick",
        help="Show in half a minute that all parts work; too short to learn anything.",
    ),
) -> None:
    """See the whole story on made-up data, in five to ten minutes.

    Makes up hospitals, pretrains a model, fine-tunes it privately, attacks it, and writes a
    report.
    """
    from fedllm.files import make_output_folder

    make_output_folder(out, "--out")

    from fedllm.demo.story import FULL, QUICK, tell
    from fedllm.demo.telling import default_teller
    from fedllm.pretraining.run import run_pretraining
    from fedllm.runs.terminal import terminal_observer
    from fedllm_server.simulation import simulate

    tell(
        out,
        QUICK if quick else FULL,
        pretrain=lambda config, folder: run_pretraining(config, folder, [terminal_observer()]),
        simulate=lambda config, folder: simulate(config, folder, observers=[terminal_observer()]),
        teller=default_teller(),
    )
