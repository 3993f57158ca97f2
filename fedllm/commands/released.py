"""Released models: ``fedllm server release`` and ``fedllm client models``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import options
from fedllm.commands.help import CommandGroup
from fedllm.errors import ConfigError
from fedllm.visible import visible
from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.federation.protocol.releases import Release
    from fedllm_client.fetching import Fetched
    from fedllm_client.releases import Offered

models = CommandGroup(
    help="Models that the coordinator released.",
    no_args_is_help=True,
)

_KIT = typer.Option(..., metavar="KIT", help="The site's kit (the folder with its keys).")


def release(
    name: str = typer.Argument(metavar="NAME", help="The finished run's name."),
    kit: Path = typer.Option(
        ..., metavar="KIT", help="The coordinator's kit (the folder with its keys)."
    ),
    take_back: bool = typer.Option(
        False, "--withdraw", help="Stop giving it to sites; those that have it keep it."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Release a run's model to the sites.

    Signs what the model is: its run, configuration, base model and the digest of each file. From
    then on every site in the roster may fetch it (fedllm client models) from the running
    coordinator. Nothing is sent to a site that does not ask.
    """
    from fedllm.identity.kits import read_kit
    from fedllm_server.releasing import release_run, withdraw

    own = read_kit(kit.absolute(), "coordinator")
    found = withdraw(own, name) if take_back else release_run(own, name)
    if json_output:
        print(json.dumps({**_plain(found), "withdrawn": take_back}, indent=2))
    elif take_back:
        print(f"{found.name} is given to sites no more; those that fetched it have it")
    else:
        print(
            f"{found.name} is released: {len(found.files)} files, {found.size:,} bytes\n"
            f"digest  {found.digest}   (the same at every site that fetches it)"
        )


@models.command("list")
def list_models(kit: Path = _KIT, json_output: bool = options.JSON) -> None:
    """Show which models are released, and of which runs.

    Asks the coordinator, and says whether this site took part in the run. What does not bear the
    coordinator's signature, under this site's roster, is not shown.
    """
    from fedllm.identity.kits import read_kit
    from fedllm_client.releases import offered_releases

    offers, wrong = offered_releases(read_kit(kit, "site"))
    if json_output:
        listed = [{**_plain(one.release), "took_part": one.took_part} for one in offers]
        print(json.dumps({"releases": listed, "not_signed": wrong}, indent=2))
        return
    _print_offers(offers)
    if wrong:
        typer.echo(
            f"WARNING: {wrong} more that the coordinator offers are not signed as they should be; "
            "tell the federation's operator",
            err=True,
        )


@models.command("fetch")
def fetch_model(
    run: str = typer.Argument(metavar="NAME", help="The run's name, or its identifier."),
    kit: Path = _KIT,
    policy: Path = typer.Option(..., help="Where this site's base model is (site.toml)."),
    out: Path | None = typer.Option(
        None, metavar="DIR", help="Folder to make; models/NAME when left out."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Fetch a released model into a folder, and check it.

    Checks the coordinator's signature, that the release fits what this site's ledger says of the
    run, that it is the one that this site was given before, that the base model is this site's, and
    each file. If the connection breaks, the same command goes on from there.
    """
    from fedllm.config import load_site_policy
    from fedllm.identity.kits import read_kit
    from fedllm_client.fetching import fetch
    from fedllm_client.releases import chosen, offered_releases

    own, base = read_kit(kit, "site"), load_site_policy(policy).model
    if base is None:
        raise ConfigError(
            f"{policy} has no section [model]",
            "name the site's own base model; see examples/deployment/site.toml",
        )
    offer = chosen(*offered_releases(own), run)
    folder = out or Path("models") / offer.release.name
    with _bar(offer.release.name, json_output) as heard:
        found = fetch(own, base, offer, folder, heard)
    if json_output:
        told = {"folder": str(found.folder), "took_part": found.took_part}
        print(json.dumps({**_plain(found.release), **told, "bytes": found.new_bytes}, indent=2))
    else:
        _print_fetched(found, kit, policy)


@contextmanager
def _bar(name: str, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Give the block something to call with how many of how many bytes are there."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(safe(name), total=None)
        yield lambda done, size: progress.update(task, completed=done, total=size)


def _print_offers(offers: list[Offered]) -> None:
    from rich.console import Console

    if not offers:
        print("the coordinator has released no model")
        return
    rows = table("Run", "Identifier", "Released", "Bytes", "This site took part", "Digest")
    for one in offers:
        release = one.release
        rows.add_row(
            safe(release.name),
            release.run,
            f"{release.time:%Y-%m-%d %H:%M} UTC",
            f"{release.size:,}",
            "yes" if one.took_part else "NO",
            release.digest[:32],
        )
    Console().print(rows)


def _print_fetched(found: Fetched, kit: Path, policy: Path) -> None:
    release = found.release
    what = f"{found.new_bytes:,} bytes fetched" if found.new_bytes else "it was here already"
    print(f"{release.name} lies in {visible(str(found.folder))}: {what}, every file checked")
    if found.took_part:
        print(f"run     {release.run}; this site took part in it, by its own ledger")
    else:
        print(f"run     {release.run}; this site did NOT take part in it, by its own ledger")
    print(
        f"digest  {release.digest}\n        (compare it with another site, over a call or by mail: "
        "all must have the same)"
    )
    command = ["fedllm", "client", "personalise", str(found.folder)]
    command += ["--kit", str(kit), "--policy", str(policy)]
    print(f"next    {visible(shlex.join(command))}")
    print(f"        {visible(shlex.join(['fedllm', 'serve', str(found.folder)]))}")


def _plain(release: Release) -> dict[str, Any]:
    return {
        "run": release.name,
        "run_id": release.run,
        "digest": release.digest,
        "config": release.config_digest,
        "base": release.base,
        "bytes": release.size,
        "released": release.time.isoformat(timespec="seconds"),
        "files": [vars(file) for file in release.files],
    }
