"""``fedllm audit``: for those who trust none of the parties."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import options
from fedllm.commands.help import CommandGroup
from fedllm.config import RunConfig, Section, load_run_config
from fedllm.errors import ConfigError, FedllmError, PeerError

if TYPE_CHECKING:
    from fedllm.audit.selftest.run import Check, Result

app = CommandGroup(help="Audits for those who trust none of the parties.", no_args_is_help=True)


@app.command()
def selftest(json_output: bool = options.JSON) -> None:
    """Check that this installation does what epsilon assumes.

    Trains on made-up data and checks noise, clipping, sampling, accounting, ledger, encryption,
    masks and keys; no data of the site is touched. Exit code 1 when a check fails.
    """
    if not json_output:
        print("Loading the installed code ...", flush=True)
    from fedllm.audit.installation import describe
    from fedllm.audit.selftest.run import CHECKS, false_alarm
    from fedllm.audit.selftest.run import selftest as run

    def heard(done: int, check: Check) -> None:
        if not json_output and sys.stderr.isatty():
            print(f"\r\033[K[{done + 1}/{len(CHECKS)}] {check.name} ...", end="", file=sys.stderr)

    def told(result: Result) -> None:
        if json_output:
            return
        if sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr, flush=True)
        word = "pass" if result.passed else "FAIL"
        print(f"{word}  {result.name:20}  {result.meaning}  ({result.seconds:.1f} s)", flush=True)
        if result.problem:
            print(f"      found: {result.problem}", flush=True)

    results = run(heard, told)
    failed = [result.name for result in results if not result.passed]
    if json_output:
        print(
            json.dumps(
                {
                    "passed": not failed,
                    "checks": [_result_json(result) for result in results],
                    "false_alarm_probability": false_alarm(),
                    "installation": describe(),
                },
                indent=2,
            )
        )
    elif not failed:
        print(
            f"All {len(results)} checks passed. Right code fails with a probability below "
            f"{false_alarm():.0e}."
        )
    if failed:
        raise FedllmError(
            f"the self-test found {len(failed)} faults: {', '.join(failed)}",
            "do not train with this installation; install fedllm anew and compare versions",
        )


def _result_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "meaning": result.meaning,
        "passed": result.passed,
        "problem": result.problem,
        "seconds": round(result.seconds, 2),
    }


@app.command()
def epsilon(
    ledgers: list[Path] = typer.Argument(
        help="Ledgers, exports of them, folders of them, or run folders."
    ),
    public_key: list[str] = typer.Option(
        [],
        "--public-key",
        metavar="SITE=HEX",
        help="A site's public key (64 hex digits), taken from the roster; may be repeated.",
    ),
    anchor: list[str] = typer.Option(
        [],
        "--anchor",
        metavar="SITE=SEQ:HASH",
        help="The head of a site's ledger (number and hash of its last entry), as noted elsewhere "
        "before; may be repeated.",
    ),
    json_output: bool = options.JSON,
) -> None:
    """Recompute every epsilon from the ledgers' events.

    Three accountants of other authors do it; chain and signatures are checked first. Exit code 4
    when a claim does not hold.
    """
    from fedllm.audit.epsilon import audit_ledgers, find_ledgers
    from fedllm.audit.epsilon_judge import require_sound
    from fedllm.audit.epsilon_text import as_json, as_result, print_tables
    from fedllm.commands.ledger import read_key
    from fedllm.privacy.ledger_entries import Head

    keys = {site: read_key(value) for site, value in map(_named, public_key)}
    anchors = {site: Head.parse(value) for site, value in map(_named, anchor)}
    found = audit_ledgers(find_ledgers(ledgers), keys, anchors)
    folder = ledgers[0] if (ledgers[0] / "summary.json").exists() and not ledgers[1:] else None
    _keep(folder, "epsilon", as_result(found), quiet=json_output)
    if json_output:
        print(json.dumps(as_json(found), indent=2, allow_nan=False))
    else:
        print_tables(found)
    require_sound(found)


def _named(option: str) -> tuple[str, str]:
    site, sign, value = option.partition("=")
    if not sign or not site:
        raise ConfigError(f"{option!r} is not SITE=VALUE", "e.g. --public-key site-a=3af0...")
    return site, value


_RUN = typer.Argument(help="The folder of a run, or a run configuration (a TOML file).")


@app.command()
def canaries(
    run: Path = _RUN,
    override: list[str] = options.SET,
    count: int = typer.Option(
        1000, "--canaries", min=20, help="Made-up contributions to plant; more show more."
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
    from fedllm.audit.attacks import run_canaries

    config, folder = _configuration(run, override)
    result = run_canaries(config, count, confidence, _progress(json_output))
    _keep(folder, "canaries", result, json_output)
    if json_output:
        print(result.model_dump_json(indent=2))
    else:
        claim = "no privacy" if result.claimed is None else f"epsilon {result.claimed:g}"
        print(f"claimed: {claim} at delta {result.delta:g}")
        for attack in result.attacks:
            print(
                f"{attack.kind}: {attack.right} of {attack.guesses} guesses right on "
                f"{attack.canaries} canaries; epsilon is at least {attack.epsilon:.2f} "
                f"({attack.epsilon_without_assumption:.2f} for any mechanism), "
                f"{100 * attack.confidence:.4g}% confidence"
            )
    if result.refuted:
        raise PeerError(
            "an attack told more than the claimed epsilon allows",
            "believe no epsilon of this installation; run `fedllm audit selftest`",
        )


@app.command()
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
    from fedllm.audit.attacks import run_membership

    for run in runs:
        if not (run / "adapter").is_dir():
            raise ConfigError(f"{run} is no folder of a finished run", "give runs/<name>")
    result = run_membership(runs, records, shadows, _progress(json_output))
    if json_output:
        print(result.model_dump_json(indent=2))
    for place, run in enumerate(runs):
        # In each run's own folder its own model stands first.
        order = (result.models[place], *result.models[:place], *result.models[place + 1 :])
        _keep(run, "membership", result.model_copy(update={"models": order}), quiet=json_output)
    if json_output:
        return
    print(f"{result.members} members, {result.others} others, {result.shadows} shadow models")
    for model in (*result.models, result.control):
        low, high = model.auc_interval
        privacy = "no privacy" if model.epsilon is None else f"epsilon {model.epsilon:g}"
        print(
            f"{model.name}, {privacy}: AUC {model.auc:.3f} ({low:.3f} to {high:.3f}), members "
            f"found at 0.1% false alarms {model.tpr_at_0_1_percent:.2%}, at 1% "
            f"{model.tpr_at_1_percent:.2%}"
        )


@app.command()
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
    from fedllm.audit.attacks import run_extraction

    config, folder = _configuration(run, override)
    result = run_extraction(config, secrets, candidates, _progress(json_output))
    _keep(folder, "extraction", result, json_output)
    if json_output:
        print(result.model_dump_json(indent=2))
        return
    for model in result.models:
        mean = sum(model.exposure) / len(model.exposure)
        print(
            f"{model.name}: {model.extracted} of {result.secrets} secrets come out; mean exposure "
            f"{mean:.2f} bits (chance {result.expected:.2f}, ranked first {result.maximum:.2f})"
        )


def _configuration(run: Path, override: list[str]) -> tuple[RunConfig, Path | None]:
    """Read a run; with the folder in which results are kept, if it is one."""
    from fedllm.commands.base_model import with_base_model

    folder = run if run.is_dir() else run.parent
    config = with_base_model(load_run_config(run / "run.toml" if run.is_dir() else run, override))
    return config, folder if (folder / "summary.json").exists() and not override else None


def _progress(quiet: bool) -> Callable[[str, int, int], None]:
    def heard(what: str, done: int, of: int) -> None:
        if quiet or not sys.stderr.isatty():
            return
        end = "\n" if done == of else ""
        print(f"\r\033[K{what}: {done} of {of}", end=end, file=sys.stderr, flush=True)

    return heard


def _keep(folder: Path | None, name: str, result: Section, quiet: bool) -> None:
    from fedllm.audit.results import save

    if folder is not None:
        path = save(folder, name, result)
        if not quiet:
            print(f"kept in {path}; `fedllm audit report {folder}` shows it")


class Language(StrEnum):
    """Of a report."""

    en = "en"
    zh = "zh"


@app.command()
def report(
    run: Path = typer.Argument(help="The folder of a finished run."),
    language: Language = typer.Option(
        Language.en, help="Language of the report: English or Chinese."
    ),
    beside: list[Path] = typer.Option(
        [], help="Folder of another run to show promise and attacks beside; may be repeated."
    ),
) -> None:
    """Write report.html for a data-protection officer.

    One page, and report.json, which says the same for machines. Shows what `audit epsilon`,
    `canaries`, `membership` and `extraction` left in the folder.
    """
    from fedllm.audit.report import write_report

    print(write_report(run, language.value, beside))
