"""``fedllm audit``: for those who trust none of the parties."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import attacks, options
from fedllm.commands.help import CommandGroup
from fedllm.errors import ConfigError, FedllmError

if TYPE_CHECKING:
    from fedllm.audit.selftest.checks import Check
    from fedllm.audit.selftest.run import Result

app = CommandGroup(help="Audits for those who trust none of the parties.", no_args_is_help=True)


@app.command()
def selftest(
    quick: bool = typer.Option(
        False, "--quick", help="Fewer cases and numbers: half a minute instead of five."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Check that this installation does what epsilon assumes.

    Trains on made-up data and checks noise and where it comes from, clipping, sampling, charges,
    accounting, ledger, encryption, masks and keys; no data of the site is touched. Exit code 1
    when a check fails.
    """
    if not json_output:
        print("Loading the installed code ...", flush=True)
    from fedllm.audit.installation import describe
    from fedllm.audit.selftest.checks import CHECKS
    from fedllm.audit.selftest.run import false_alarm
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

    results = run(heard, told, quick)
    failed = [result.name for result in results if not result.passed]
    if json_output:
        print(
            json.dumps(
                {
                    "passed": not failed,
                    "quick": quick,
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
    heads: Path | None = options.HEADS,
    json_output: bool = options.JSON,
) -> None:
    """Recompute every epsilon from the ledgers' events.

    Three accountants of other authors do it; chain and signatures are checked first. Exit code 4
    when a claim does not hold.
    """
    from fedllm.audit.ledgers.epsilon import audit_ledgers, find_ledgers
    from fedllm.audit.ledgers.judge import require_sound
    from fedllm.audit.ledgers.text import as_json, as_result, print_tables
    from fedllm.commands.ledger import read_key
    from fedllm.privacy.ledger.entries import Head
    from fedllm.privacy.ledger.heads import read_heads

    keys = {site: read_key(value) for site, value in map(_named, public_key)}
    anchors = read_heads(heads) if heads else {}
    for site, value in map(_named, anchor):
        anchors.setdefault(site, []).append(Head.parse(value))
    sources = find_ledgers(ledgers)
    found = audit_ledgers(sources, keys, anchors)
    folder = sources.kept_in()
    attacks.keep(folder, "epsilon", as_result(found, folder), quiet=json_output)
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


app.command()(attacks.canaries)
app.command()(attacks.membership)
app.command()(attacks.extraction)


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
    from fedllm.audit.report.page import write_report
    from fedllm.files import given_path

    with given_path():
        path = write_report(run, language.value, beside)
    print(path)
