"""``rekey`` of a site and a coordinator, and ``fedllm client log``: what a kit keeps sealed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedllm.commands import options
from fedllm.commands.prompts import asked
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.at_rest.vault import Vault
    from fedllm.identity.roster import Role

_KIT = typer.Option(..., metavar="KIT", help="The site's kit (the folder with its keys).")
_PLACES = (
    "own (the kit's own secret), key:file:PATH, key:env:NAME (64 hexadecimal digits; the file is "
    "made if it is not there), passphrase, passphrase:file:PATH or passphrase:env:NAME"
)


_TO = typer.Option(
    ..., "--to", metavar="KEY", help=f"What opens the sealed files from now on: {_PLACES}."
)


def rekey(kit: Path = _KIT, to: str = _TO, json_output: bool = options.JSON) -> None:
    """Seal what this kit keeps secret with a new key.

    Layers of the site's own, and, once keys were chosen, the site's log. Stop the client first. The
    old key works until the last file is done, and then no more; if the command is cut off, give it
    again. Ledger, memory and signed releases stay readable: they are signed, not secret.
    """
    from fedllm.personal.sealed import FILES, PURPOSE

    left = _rekey(kit, "site", "a client", "client.lock", (FILES, PURPOSE), to, json_output)
    if left and not json_output:
        print(
            f"{len(left)} layers of an earlier version stay under the kit's own secret; "
            "fedllm client personalise makes them anew"
        )


def rekey_server(
    kit: Path = typer.Option(
        ..., metavar="KIT", help="The coordinator's kit (the folder with its keys)."
    ),
    to: str = _TO,
    json_output: bool = options.JSON,
) -> None:
    """Seal the checkpoints of this kit's runs with a new key.

    From the first time on, checkpoints are sealed, those that are there and those that are written
    later. Stop the coordinator first. The old key works until the last file is done, and
    then no more; if the command is cut off, give it again.
    """
    from fedllm.runs.checkpoints import FILES, PURPOSE, recover_checkpoints, seal_checkpoints

    kind, lock = (FILES, PURPOSE), "server.lock"
    _rekey(
        kit,
        "coordinator",
        "a coordinator",
        lock,
        kind,
        to,
        json_output,
        recover_checkpoints,
        seal_checkpoints,
    )


def _rekey(
    kit: Path,
    role: Role,
    service: str,
    lock_file: str,
    kind: tuple[str, str],
    to: str,
    json_output: bool,
    recover: Callable[[Path], None] = lambda state: None,
    seal_clear: Callable[[Path, Vault], list[Path]] = lambda state, vault: [],
) -> list[Path]:
    from fedllm.at_rest.keyring import PLACE_VARIABLE, Lock, Secrets, new_secret
    from fedllm.at_rest.vault import DERIVATION, Vault
    from fedllm.identity.kits import read_kit
    from fedllm.processes import keep_memory_private, only_one

    keep_memory_private()
    own, lock = read_kit(kit.absolute(), role), Lock.parse(to)
    state = own.folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    done: list[Path] = []
    with only_one(state / lock_file, service):
        recover(state)
        vault = Vault.of(state, own.identity)
        secret = new_secret(lock, Secrets(own.identity.derive(DERIVATION), _new_passphrase))
        left = vault.rekey(lock, secret, [kind], done.append)
        done += seal_clear(state, vault)
    if json_output:
        print(json.dumps({"key": str(lock), "sealed": len(done), "left": [*map(str, left)]}))
        return left
    print(f"{len(done)} files are sealed with a new key, which {visible(str(lock))} opens")
    if lock.kind == "passphrase" and not lock.place:
        print(f"a service cannot be asked: start it with {PLACE_VARIABLE}=file:PATH or env:NAME")
    if lock.kind != "own":
        print("back the key up apart from the kit: without it, nothing that is sealed opens")
    return left


def show_log(kit: Path = _KIT) -> None:
    """Print the site's own log, sealed or not.

    A JSON object a line. It holds losses and timings of each round, and the words of errors: as
    private as the records.
    """
    from fedllm.at_rest.vault import Vault
    from fedllm.identity.kits import read_kit
    from fedllm.processes import keep_memory_private

    keep_memory_private()
    own = read_kit(kit, "site")
    for line in Vault.of(own.folder / "state", own.identity).log_lines():
        print(line)


def _new_passphrase() -> bytes | None:
    import sys

    if not sys.stdin.isatty():
        return None
    words = "New passphrase for the kit's files"
    text = asked(lambda: typer.prompt(words, hide_input=True, confirmation_prompt=True, err=True))
    return str(text).encode() or None
