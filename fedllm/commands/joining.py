"""What every role's commands share: make a kit here, install the answer, take a new roster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from fedllm.commands.prompts import asked
from fedllm.errors import ConfigError, FedllmError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.identity.roster import Role, Roster

_SAME = "Did the other side read the same to you, over a call you made?"
_OUT = typer.Option(
    ..., "--out", metavar="KIT", help="Folder to make for the keys, which never leave it."
)
_KIT = typer.Option(
    ..., "--kit", metavar="KIT", help="The kit: the folder with the keys that were made here."
)
_ANSWER = typer.Argument(help="The file that the operator sent back for your request.")
_ROOT = typer.Option(
    None,
    "--root",
    metavar="FINGERPRINT",
    help="The root key's fingerprint, as the operator read it to you; asked for when left out.",
)
_ROSTER = typer.Argument(
    help="The signed list of who takes part, as the operator sent it (roster.json)."
)


def add_joining_commands(
    app: typer.Typer, role: Literal["site", "authority", "coordinator"]
) -> None:
    """Add ``enroll``, ``accept`` and ``update-roster`` to a role's group of commands."""

    def enroll_site(
        name: str = typer.Option(
            ..., "--name", metavar="NAME", help="The site's name, in any script."
        ),
        out: Path = _OUT,
    ) -> None:
        """Make the site's keys here, and a request to join.

        Send the operator request.json, which holds nothing secret, and read out its fingerprint.
        """
        _enroll(out, role, name)

    def enroll_role(out: Path = _OUT) -> None:
        """Make the keys here, and a request to join.

        Send the operator request.json, which holds nothing secret, and read out its fingerprint.
        """
        _enroll(out, role, role)

    app.command("enroll")(enroll_site if role == "site" else enroll_role)
    app.command("accept")(_accept)
    app.command("update-roster")(_update_roster)


def _enroll(out: Path, role: Role, name: str) -> None:
    from fedllm.identity.enrolment import enroll

    request = enroll(out, role, name)
    group = {"site": "client", "coordinator": "server"}.get(role, role)
    if request.title:
        print(f"site         {visible(request.shown)}   (files and messages use '{request.name}')")
    print(
        f"kit          {out}   (private keys inside; it stays on this machine)\n"
        f"request      {out / 'request.json'}   (nothing secret; send it to the operator)\n"
        f"fingerprint  {request.fingerprint}   (read it to the operator over the phone)\n"
        f"then         fedllm {group} accept ANSWER --kit {out}"
    )


def _accept(answer: Path = _ANSWER, kit: Path = _KIT, root: str | None = _ROOT) -> None:
    """Install the operator's answer in a kit that was made here."""
    from fedllm.identity.enrolment import accept, read_answer

    found = read_answer(read_small_file(answer))
    confirm_fingerprint("the federation's root key", found.fingerprint, root, "--root")
    _say_installed(kit, accept(kit, found))


def _update_roster(roster: Path = _ROSTER, kit: Path = _KIT) -> None:
    """Install a newer list of who takes part.

    The coordinator needs each new one by hand. Sites and the key authority get it from there, and
    need it by hand only when they cannot connect any more.
    """
    from fedllm.identity.kits import update_roster

    _say_installed(kit, update_roster(kit, read_small_file(roster)))


def _say_installed(kit: Path, roster: Roster) -> None:
    expires = f"{roster.expires:%Y-%m-%d}" if roster.expires else "never"
    print(
        f"{kit}: roster {roster.version} of '{roster.federation}', {len(roster.sites)} sites, "
        f"valid until {expires}, coordinator at {roster.address}"
    )


def read_small_file(path: Path) -> str:
    """Read a file that another party sent.

    Raises
    ------
    ConfigError
        If it is missing, unreadable, or too large to be what it should be.
    """
    try:
        if path.stat().st_size > 16 * 2**20:
            raise ConfigError(f"{path} is too large", "check that it is the right file")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({type(error).__name__})") from None


def confirm_fingerprint(what: str, actual: str, said: str | None, option: str) -> None:
    """Compare a fingerprint with what somebody read out, or ask the person at the terminal.

    Raises
    ------
    RefusedError
        If they differ.
    ConfigError
        If nothing was said and nobody sits at the terminal.
    """
    from fedllm.errors import RefusedError
    from fedllm.identity.enrolment import same_fingerprint

    if said is None and sys.stdin.isatty():
        print(f"fingerprint of {what}: {actual}")
        if not asked(lambda: typer.confirm(_SAME)):
            raise FedllmError("not confirmed; nothing was changed")
        return
    if said is None:
        raise ConfigError(
            f"nobody confirmed the fingerprint of {what}",
            f"ask the other side to read it over the phone, and give it with {option}",
        )
    if not same_fingerprint(said, actual):
        raise RefusedError(
            f"the fingerprint of {what} is {actual}, not what {option} says",
            "the file may be somebody else's: call the other side, and ask for it anew",
        )
