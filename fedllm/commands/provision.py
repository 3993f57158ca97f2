"""``fedllm provision``: the operator's commands, from the first kit to the last renewal."""

from __future__ import annotations

import json
from pathlib import Path

import click
import typer

from fedllm.commands import options, passphrase, provision_text
from fedllm.commands.help import CommandGroup, Group
from fedllm.commands.joining import confirm_fingerprint, read_small_file
from fedllm.errors import ConfigError

_MAKE = "make"


class _FileOrCommand(Group):
    """Takes a first word that is no command for the federation's file."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_MAKE, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        # Its help then reads "fedllm provision FEDERATION.toml", as people type it.
        return ("" if name == _MAKE else name), command, rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["FEDERATION.toml --out DIR | COMMAND [ARGS]..."]


app = CommandGroup(cls=_FileOrCommand, no_args_is_help=True)

_DIR = typer.Option(
    ..., "--dir", metavar="DIR", help="The operator's folder, which the first command made (--out)."
)


@app.callback()
def _options() -> None:
    """Make the kits of a federation, and keep its roster.

    The first form reads FEDERATION.toml and makes what is missing in DIR: root key, private
    CA, the coordinator's certificate, kits, the signed roster. Running it again with more
    sites adds them and replaces nothing.
    """


@app.command(_MAKE, hidden=True)
def make(
    federation: Path = typer.Argument(
        metavar="FEDERATION.toml",
        help="The federation's name, coordinator and sites (a TOML file).",
    ),
    out: Path = typer.Option(
        ..., "--out", metavar="DIR", help="The operator's folder; made if new."
    ),
    passphrase_from: str | None = passphrase.FROM,
    json_output: bool = options.JSON,
) -> None:
    """Make the kits of a federation; running it again adds what is new.

    A passphrase protects the root key and the certificate authority's keys from whoever
    copies the folder.
    """
    from fedllm.identity.config import load_federation_config
    from fedllm.identity.operator_keys import has_root
    from fedllm.identity.provisioning import provision

    config = load_federation_config(federation)
    secret = (
        passphrase.passphrase_for(out, passphrase_from)
        if has_root(out)
        else passphrase.new_passphrase(passphrase_from)
    )
    done = provision(config, out, passphrase=secret)
    if json_output:
        print(json.dumps(provision_text.as_json(out, done), indent=2))
        return
    for name in done.kits:
        print(f"made  {out / 'kits' / name}")
    provision_text.say(out, done)


@app.command()
def show(folder: Path = _DIR, json_output: bool = options.JSON) -> None:
    """Show who takes part, and what expires when."""
    from fedllm.identity.provisioning import inspect

    done = inspect(folder)
    if json_output:
        print(json.dumps(provision_text.as_json(folder, done), indent=2))
    else:
        provision_text.print_table(folder, done)


@app.command()
def sign(
    request: Path = typer.Argument(help="The request.json that the party sent."),
    folder: Path = _DIR,
    fingerprint: str | None = typer.Option(
        None,
        metavar="FINGERPRINT",
        help="The request's fingerprint, as the party read it to you; asked for when left out.",
    ),
    passphrase_from: str | None = passphrase.FROM,
) -> None:
    """Let in a party that made its keys itself.

    Writes the answer that the party installs.
    """
    from fedllm.identity.enrolment import read_request, root_fingerprint
    from fedllm.identity.provisioning import sign as sign_request

    found = read_request(read_small_file(request))
    who = f"the request of the {found.role} '{found.shown}'"
    confirm_fingerprint(who, found.fingerprint, fingerprint, "--fingerprint")
    secret = _secret(folder, passphrase_from)
    done, answer = sign_request(folder, found, passphrase=secret)
    if done.roster is not None:
        group = {"site": "client", "coordinator": "server"}.get(found.role, found.role)
        print(
            f"answer  {answer}   (nothing secret; send it back)\n"
            f"root    {root_fingerprint(done.root)}   (read it to them over the phone)\n"
            f"there   fedllm {group} accept {answer.name} --kit KIT"
        )
    else:
        print(f"signed  '{found.name}'; sign the request again for its answer")
    provision_text.say(folder, done)


@app.command()
def revoke(
    name: str = typer.Argument(
        help="The site's name, or one of: authority, coordinator, operator."
    ),
    folder: Path = _DIR,
    passphrase_from: str | None = passphrase.FROM,
) -> None:
    """Shut a party out for good.

    It is taken off the roster, and its keys are never accepted again.
    """
    from fedllm.identity.provisioning import revoke as revoke_party

    done = revoke_party(folder, name, passphrase=_secret(folder, passphrase_from))
    print(f"revoked '{name}'")
    provision_text.say(folder, done)


@app.command()
def renew(
    folder: Path = _DIR,
    new_ca: bool = typer.Option(
        False, "--new-ca", help="Add a new certificate authority; the next renewal uses it."
    ),
    drop_old_ca: bool = typer.Option(
        False, "--drop-old-ca", help="Trust the newest certificate authority alone."
    ),
    passphrase_from: str | None = passphrase.FROM,
) -> None:
    """Renew roster and certificate before they expire.

    The new ones are for the same parties and keys.
    """
    from fedllm.identity.provisioning import renew as renew_all

    secret = _secret(folder, passphrase_from)
    provision_text.say(
        folder, renew_all(folder, new_ca=new_ca, drop_old_ca=drop_old_ca, passphrase=secret)
    )


@app.command("passphrase")
def change_passphrase(
    folder: Path = _DIR,
    passphrase_from: str | None = passphrase.FROM,
    new_from: str | None = passphrase.NEW_FROM,
    remove: bool = typer.Option(False, "--remove", help="Leave the keys without a passphrase."),
) -> None:
    """Set, change or remove the passphrase of the operator's keys.

    Backups of the folder keep the passphrase that they were made with.
    """
    from fedllm.identity import provisioning

    if remove and new_from is not None:
        raise ConfigError("--remove and --new-passphrase-from exclude each other", "give one")
    old = _secret(folder, passphrase_from)
    new = None if remove else passphrase.new_passphrase(new_from)
    if new is None and not remove:
        raise ConfigError(
            "no new passphrase was given; nothing was changed",
            "type one, name it with --new-passphrase-from, or give --remove",
        )
    provisioning.change_passphrase(folder, old, new)
    print(f"the keys in {folder} are " + ("not protected any more" if remove else "protected"))


def _secret(folder: Path, source: str | None) -> bytes | None:
    """Return what opens the keys of a folder, once it is known to be an operator's."""
    from fedllm.identity.federation_state import load_state

    load_state(folder)
    return passphrase.passphrase_for(folder, source)
