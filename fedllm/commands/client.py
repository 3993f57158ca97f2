"""``fedllm client``: what a site runs."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import options
from fedllm.commands.at_rest import rekey, show_log
from fedllm.commands.help import CommandGroup
from fedllm.commands.joining import add_joining_commands
from fedllm.commands.released import models
from fedllm.commands.standing import add_standing_commands
from fedllm.errors import ConfigError
from fedllm.visible import visible
from fedllm.words import safe, table

app = CommandGroup(
    help="A site: join a federation, check the site, work for it.", no_args_is_help=True
)
add_joining_commands(app, "site")
app.add_typer(models, name="models")
app.command()(rekey)
app.command("log")(show_log)
add_standing_commands(app)

if TYPE_CHECKING:
    from fedllm_client.checking import CheckResult

_COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


@app.command()
def check(
    kit: Path = typer.Option(..., metavar="KIT", help="The site's kit (the folder with its keys)."),
    policy: Path = typer.Option(
        ..., help="What the site allows, and where its data and model are (site.toml)."
    ),
    model: str | None = typer.Option(
        None, metavar="PATH", help="Folder of the base model, if not the one in the policy."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Check that this site is ready for its first run.

    Tries everything that a run needs, and says what to do where something is wrong: network, clock,
    registration, certificates, records, disk, memory, ledger, and one training step on made-up
    text. Shows counts, names of columns and labels that look misspelt, never a record. A setting
    with which this site would refuse every round has failed, too. The exit code is 0 if nothing
    failed, otherwise that of the first failure (3: this site would refuse).
    """
    from rich.console import Console

    from fedllm_client.check import check_site

    console = Console(stderr=True)
    with console.status("checking") as status:
        results = check_site(kit, policy, model, lambda name: status.update(f"checking {name}"))
    if json_output:
        print(json.dumps([vars(result) for result in results], indent=2))
    else:
        _print_results(results, kit, policy)
    raise typer.Exit(next((f.exit_code for f in results if f.exit_code), 0))


def _print_results(results: list[CheckResult], kit: Path, policy: Path) -> None:
    from rich.console import Console

    checks = table("Check", "Result", "Found", "What to do", show_lines=True)
    for result in results:
        state = f"[{_COLOURS[result.state]}]{result.state}[/]"
        checks.add_row(result.check, state, safe(result.found, "\n"), safe(result.remedy, "\n"))
    console = Console()
    console.print(checks)
    failed = [result.check for result in results if result.state == "failed"]
    if failed:
        console.print(f"Not ready: {', '.join(failed)}.")
    else:
        doubtful = [result.check for result in results if result.state != "ok"]
        command = shlex.join(
            ["fedllm", "client", "start", "--kit", str(kit), "--policy", str(policy)]
        )
        see_to = f", but see to {', '.join(doubtful)}" if doubtful else ""
        print(f"Ready{see_to}: {visible(command)}")


@app.command()
def personalise(
    run: Path = typer.Argument(
        metavar="RUN", help="The finished run as the coordinator handed it over: its folder."
    ),
    kit: Path = typer.Option(..., metavar="KIT", help="The site's kit (the folder with its keys)."),
    policy: Path = typer.Option(..., help="Where the site's data and model are (site.toml)."),
    json_output: bool = options.JSON,
) -> None:
    """Fit a run's model to this site, for this site alone.

    Puts a layer of its own on it, and says what the site gains.

    Trains on this site's records without noise, and sends nothing: the layer lies in the kit,
    encrypted with this site's keys. It may hold records nearly word for word; so may its answers.
    Where the run held records back (evaluation.every), and no run before it had them, compares on
    them this site's own model, the shared one, and the shared one with the layer.
    """
    from fedllm.commands.benefit import print_benefit
    from fedllm.config import load_site_policy
    from fedllm.identity.kits import read_kit
    from fedllm.personal.comparing import compare_here
    from fedllm.processes import keep_memory_private
    from fedllm.runs.record import require_run, require_trained
    from fedllm.tasks import task_of

    keep_memory_private()
    require_run(run)
    require_trained(run)
    own, found = read_kit(kit, "site"), load_site_policy(policy)
    if found.data is None or found.model is None:
        raise ConfigError(
            f"{policy} has no section [data] or [model]",
            "name the site's own records and base model; see examples/deployment/site.toml",
        )
    data = found.data
    here = compare_here(
        run, own, found.model, lambda config: task_of(config).read(data.train, data)
    )
    if json_output:
        told = {
            "layer": str(here.path),
            "epochs": here.layer.epochs,
            "benefit": None if here.benefit is None else here.benefit.model_dump(mode="json"),
            "why_not": here.why_not,
        }
        print(json.dumps(told, indent=2))
        return
    if here.benefit is None:
        print(visible(f"nothing to compare on: {here.why_not}"))
    else:
        print_benefit(here.benefit)
    epochs = here.layer.epochs
    kept = f"{epochs} epochs" if epochs else "no better than the shared model, so empty"
    print(f"the layer ({kept}) lies encrypted in {here.path}; nothing was sent")


@app.command()
def start(
    kit: Path = typer.Option(..., metavar="KIT", help="The site's kit (the folder with its keys)."),
    policy: Path = typer.Option(
        ..., help="What the site allows, and where its data and model are (site.toml)."
    ),
) -> None:
    """Take part in the federation's runs until stopped.

    Connects to the coordinator; no port is opened on this machine. fedllm client stop ends it after
    the round that is under way.
    """
    from fedllm.at_rest.sources import nobody
    from fedllm.at_rest.vault import Vault
    from fedllm.config import load_site_policy
    from fedllm.federation.site.brake import LOCK, Brake
    from fedllm.federation.site.carrying import require_carried
    from fedllm.federation.site.files import SiteFiles
    from fedllm.identity.kits import read_kit
    from fedllm.processes import (
        keep_memory_private,
        keep_running,
        only_one,
        say,
        stop_on_signals,
    )

    keep_memory_private()
    stop = stop_on_signals()
    own = read_kit(kit, "site")
    # Where its log is sealed, the process that works for the site opens the same, unasked.
    Vault.of(own.folder / "state", own.identity, nobody)
    files = SiteFiles.of_kit(own.folder)
    require_carried(files, own.identity, own.roster)
    found = load_site_policy(policy)
    for section in ("model", "data"):
        if getattr(found, section) is None:
            raise ConfigError(
                f"{policy} has no section [{section}]",
                "name the site's own records and base model; see examples/deployment/site.toml",
            )
    arguments = ["site", str(kit.absolute()), str(policy.absolute())]
    brake = Brake(own.folder / "state")
    with only_one(kit / "state" / LOCK, "a client"):
        code = keep_running(
            "fedllm_client.node", arguments, stop, say, over=lambda: brake.ending is not None
        )
        if not stop.is_set() and (told := brake.ending) is not None:
            say(f"the service ends, as it was told{told.words}")
            # Fulfilled: whoever starts it again wants it to run.
            brake.ended()
    sys.exit(code or stop.exit_code)
