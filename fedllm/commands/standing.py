"""How a site stands, for its own people, and what they say: pause, go on, end; on a page too."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import options
from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from fedllm.overview.kit import SiteKit

_KIT = typer.Option(..., metavar="KIT", help="The site's kit (the folder with its keys).")
_POLICY = typer.Option(
    None,
    help="The site's policy (site.toml); when left out, the one that its service was last started "
    "with.",
)


def add_standing_commands(app: typer.Typer) -> None:
    """Add ``status``, ``dashboard``, ``pause``, ``resume`` and ``stop`` to a site's group."""
    app.command()(status)
    app.command()(dashboard)
    app.command()(pause)
    app.command()(resume)
    app.command()(stop)


def status(
    kit: Path = _KIT, policy: Path | None = _POLICY, json_output: bool = options.JSON
) -> None:
    """Show how this site stands.

    What runs, what was sent, what is spent of the budget and how long it lasts, and the policy. No
    record is read. Exit code 1 if the site's service does not run.
    """
    from fedllm.overview.as_json import as_json
    from fedllm.overview.kit import read_site_kit
    from fedllm.overview.standing import Look
    from fedllm.overview.terminal import print_standing

    standing = Look(read_site_kit(kit), policy)()
    if json_output:
        print(json.dumps(as_json(standing), indent=2, allow_nan=False))
    else:
        from rich.console import Console

        print_standing(standing, Console())
    sys.exit(0 if standing.service.runs else 1)


def dashboard(
    kit: Path = _KIT,
    policy: Path | None = _POLICY,
    port: int = typer.Option(
        8351, min=0, max=65535, help="Port of loopback to listen on; 0 takes a free one."
    ),
) -> None:
    """Show this site on a page of this machine, live.

    Until stopped, for whoever has its token.

    What runs, what was sent, the budget and how long it lasts, the policy, pause and stop, and an
    export of the ledger. The page opens for whoever has the token that the printed address holds;
    it lies in the kit's state/page-token too, which only the kit's owner can read, and is another
    one at each start. No record is read, and no other host is asked for anything.
    """
    import threading

    from fedllm.overview.kit import read_site_kit
    from fedllm.overview.listening import opened, show
    from fedllm.overview.standing import Look
    from fedllm.processes import keep_memory_private, leave, stop_on_signals

    keep_memory_private()
    look = Look(read_site_kit(kit), policy)
    listening, stop_ = opened(port), stop_on_signals()
    show(look, listening, stop_, _tell)
    if threading.active_count() > 1:
        leave(stop_.exit_code)
    raise typer.Exit(stop_.exit_code)


def _tell(address: str, token: str, file: Path) -> None:
    """Say how to open the page; a token goes to a person's terminal and into no service's log."""
    if sys.stdout.isatty():
        print(f"open {address}enter?token={token} (Ctrl-C ends it)", flush=True)
    else:
        print(f"the page is at {address} and asks for the token in {file}", flush=True)


def pause(kit: Path = _KIT) -> None:
    """Begin no new round until resumed.

    The round that is under way is finished. The site stays connected, and refuses what would begin
    a round before a record is touched; it stays paused when the service or the machine is started
    again.
    """
    from fedllm.federation.site.brake import Brake

    own = _own(kit)
    held = Brake(own.state).pause("fedllm client pause")
    print(f"paused{held.words}: no new round is begun; {_under_way(own)}")


def resume(kit: Path = _KIT) -> None:
    """Begin rounds again after a pause.

    Also takes a stop back that has not happened yet. The service starts its working process anew,
    with the policy as it is then, so that the coordinator asks this site again.
    """
    from fedllm.federation.site.brake import Brake

    was_held = Brake(_own(kit).state).release()
    print("the site goes on" if was_held else "the site was not paused")


def stop(kit: Path = _KIT) -> None:
    """End the service after the round that is under way.

    It starts again when somebody starts it: fedllm client start, or systemctl start.
    """
    from fedllm.federation.site.brake import Brake

    own = _own(kit)
    held = Brake(own.state).end("fedllm client stop")
    if held is None:
        raise ConfigError(
            f"no client runs with the kit {kit}", "leave it so: what does not run sends nothing"
        )
    print(f"the service is to end{held.words}; {_under_way(own)}")


def _own(kit: Path) -> SiteKit:
    from fedllm.overview.kit import read_site_kit

    return read_site_kit(kit)


def _under_way(own: SiteKit) -> str:
    from fedllm.overview.reading import read_running, read_service
    from fedllm.overview.wording import running_words

    running = read_running(own.state, read_service(own.state))
    words = running_words(running)
    return words if running is None else f"this round is finished first: {words}"
