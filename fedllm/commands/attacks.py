"""The attacks of ``fedllm audit``: what somebody learns who has the released model, or more."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import options
from fedllm.config import RunConfig, load_run_config
from fedllm.errors import PeerError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.audit.attacks.results import CanaryAttack, Kept

_RUN = typer.Argument(help="The folder of a run, or a run configuration (a TOML file).")


def canaries(
    run: Path = _RUN,
    override: list[str] = options.SET,
    count: int | None = typer.Option(
        None,
        "--canaries",
        min=20,
        help="Made-up contributions to plant for each attack; more show more. As many as can "
        "refute the claim when left out.",
    ),
    confidence: float = typer.Option(
        0.95, min=0.5, max=0.999999, help="How sure all printed lower bounds together are."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Attack a run's epsilon with planted canaries.

    An attacker guesses which canaries were in the data. Trains a sandboxed copy of the run on
    made-up and public records. Exit code 4 when an attack tells more than the claimed epsilon
    allows.
    """
    from fedllm.audit.attacks.run import run_canaries

    config, folder = _configuration(run, override)
    result = run_canaries(config, count, confidence, _progress(json_output))
    keep(folder, "canaries", result, json_output)
    if json_output:
        print(_as_json(result))
    else:
        claim = "no privacy" if result.claimed is None else f"epsilon {result.claimed:g}"
        print(f"claimed: {claim} at delta {result.delta:g}")
        for attack in result.attacks:
            print(
                f"{attack.kind}: {attack.right} of {attack.guesses} guesses right on "
                f"{attack.canaries} canaries; epsilon is at least {attack.epsilon:.3g} "
                f"({attack.epsilon_without_assumption:.3g} for any mechanism), "
                f"{100 * attack.confidence:.4g}% confidence"
            )
            if attack.largest is not None:
                print(_reach(attack, result.claimed))
    if result.refuted:
        raise PeerError(
            "an attack told more than the claimed epsilon allows",
            "believe no epsilon of this installation; run `fedllm audit selftest`",
        )


def _reach(attack: CanaryAttack, claimed: float | None) -> str:
    """Say how much so many canaries could have shown, and what to do if that is too little."""
    most = f"  so many canaries can show an epsilon of about {attack.largest:.3g} at most"
    if claimed is None or attack.largest is None or attack.largest > claimed:
        return most
    if attack.needed is None:
        remedy = "lower --confidence, or audit a copy with more steps or a higher sampling rate"
    else:
        remedy = f"--canaries {attack.needed} could, or a lower --confidence"
    return f"{most}: too few to refute the claim, whatever the code does; {remedy}"


def membership(
    runs: list[Path] = typer.Argument(
        help="Folders of finished runs on the same data: the released run, then its twins."
    ),
    records: int = typer.Option(
        1000, min=50, help="Training records, and as many others, to tell apart."
    ),
    shadows: int = typer.Option(
        4, min=1, help="Pairs of models that the attacker trains to practise; more attack better."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Try to tell a run's training records from others.

    Goes by the released model's losses (the likelihood ratio attack, LiRA). Reads the runs'
    training records: for simulations, and for a site's own copy.
    """
    from fedllm.audit.attacks.run import run_membership
    from fedllm.runs.record import require_run, require_trained

    for run in runs:
        require_run(run)
        require_trained(run)
    result = run_membership(runs, records, shadows, _progress(json_output))
    if json_output:
        print(_as_json(result))
    for place, run in enumerate(runs):
        # In each run's own folder its own model stands first.
        order = (result.models[place], *result.models[:place], *result.models[place + 1 :])
        keep(run, "membership", result.model_copy(update={"models": order}), quiet=json_output)
    if json_output:
        return
    print(f"{result.members} members, {result.others} others, {result.shadows} shadow models")
    for model in (*result.models, result.control):
        low, high = model.auc_interval
        privacy = "no privacy" if model.epsilon is None else f"epsilon {model.epsilon:g}"
        print(
            f"{visible(model.name)}, {privacy}: AUC {model.auc:.3f} ({low:.3f} to {high:.3f}), "
            f"members found at 0.1% false alarms {model.tpr_at_0_1_percent:.2%}, at 1% "
            f"{model.tpr_at_1_percent:.2%}"
        )


def extraction(
    run: Path = _RUN,
    override: list[str] = options.SET,
    secrets: int = typer.Option(16, min=1, help="Made-up secrets to plant."),
    candidates: int = typer.Option(
        256, min=2, help="Random codes that each secret is ranked among."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Try to get planted secrets out of a run's model.

    Trains a sandboxed copy of the run, with made-up secrets among its records.
    """
    from fedllm.audit.attacks.run import run_extraction

    config, folder = _configuration(run, override)
    result = run_extraction(config, secrets, candidates, _progress(json_output))
    keep(folder, "extraction", result, json_output)
    if json_output:
        print(_as_json(result))
        return
    for model in result.models:
        mean = sum(model.exposure) / len(model.exposure)
        print(
            f"{visible(model.name)}: {model.extracted} of {result.secrets} secrets come out; mean "
            f"exposure {mean:.2f} bits (chance {result.expected:.2f}, "
            f"ranked first {result.maximum:.2f})"
        )


def _as_json(result: Kept) -> str:
    # Date and origin are those of the file that is kept.
    return json.dumps(result.model_dump(mode="json", exclude={"made", "of"}), indent=2)


def keep(folder: Path | None, name: str, result: Kept, quiet: bool) -> None:
    """Keep an audit's result in a run's folder, for the report."""
    from fedllm.audit.attacks.results import save
    from fedllm.files import given_path

    if folder is not None:
        with given_path():
            path = save(folder, name, result)
        if not quiet:
            print(f"kept in {path}; `fedllm audit report {folder}` shows it")


def _configuration(run: Path, override: list[str]) -> tuple[RunConfig, Path | None]:
    """Read a run; with the folder in which results are kept, if it is one."""
    from fedllm.commands.base_model import with_base_model
    from fedllm.runs.names import RUN_TOML, SUMMARY
    from fedllm.runs.record import require_run, require_trained

    if run.suffix != ".toml":
        require_run(run, finished=False)
        require_trained(run)
    folder = run if run.is_dir() else run.parent
    config = with_base_model(load_run_config(run / RUN_TOML if run.is_dir() else run, override))
    return config, folder if (folder / SUMMARY).exists() and not override else None


def _progress(quiet: bool) -> Callable[[str, int, int], None]:
    def heard(what: str, done: int, of: int) -> None:
        if quiet or not sys.stderr.isatty():
            return
        end = "\n" if done == of else ""
        print(f"\r\033[K{what}: {done} of {of}", end=end, file=sys.stderr, flush=True)

    return heard
