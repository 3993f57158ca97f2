"""``fedllm ledger``: read, check and export what a site's records have spent."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from fedllm.commands import options
from fedllm.commands.help import CommandGroup
from fedllm.commands.ledger_text import as_json, beyond_the_ceiling, print_tables
from fedllm.errors import ConfigError
from fedllm.visible import visible

Unit = Literal["record", "person"]

if TYPE_CHECKING:
    from fedllm.privacy.ledger.budget import Ceiling

app = CommandGroup(help="Read, check and export a site's privacy ledger.", no_args_is_help=True)

_PATH = typer.Argument(help="The ledger file (SQLite), or an export of one.")
_KEY = typer.Option(
    None,
    "--public-key",
    metavar="HEX",
    help="The site's public key (64 hex digits), taken from the roster, not from the ledger.",
)
_ANCHOR = typer.Option(
    None,
    "--anchor",
    metavar="SEQ:HASH",
    help="The ledger's head (number and hash of its last entry), as noted elsewhere before.",
)


@app.command()
def show(
    path: Path = _PATH,
    policy: Path | None = typer.Option(
        None,
        help="The site's policy (site.toml): show what is left under its ceilings, instead of "
        "those that the last charge was checked against.",
    ),
    json_output: bool = options.JSON,
) -> None:
    """Show how much privacy the site has spent.

    One account for all its records, or one for each that its policy declares.
    """
    from fedllm.privacy.ledger.audit import verify_ledger

    ceiling, account = _budget(policy) if policy else (None, "")
    found = verify_ledger(path, policy=ceiling, account=account)
    if json_output:
        print(json.dumps(as_json(found, path), indent=2, allow_nan=False))
    else:
        print_tables(found, path)


def _budget(policy: Path) -> tuple[Ceiling, str]:
    from fedllm.config import load_site_policy
    from fedllm.privacy.ledger.budget import Ceiling

    budget = load_site_policy(policy).budget
    ceiling = Ceiling(budget.epsilon, budget.delta, budget.colluders_epsilon or math.inf)
    return ceiling, budget.account or ""


@app.command()
def verify(
    path: Path = _PATH,
    public_key: str | None = _KEY,
    anchor: str | None = _ANCHOR,
    heads: Path | None = options.HEADS,
    json_output: bool = options.JSON,
) -> None:
    """Check that nobody changed the ledger or overspent.

    Checks chain, signatures, fingerprints and budgets; exit code 4 when they do not hold.
    """
    from fedllm.identity.titles import shown, titles_beside
    from fedllm.privacy.ledger.audit import read_state, verify_ledger
    from fedllm.privacy.ledger.entries import Head
    from fedllm.privacy.ledger.heads import read_heads

    anchors = [Head.parse(anchor)] if anchor else []
    if heads:
        anchors += read_heads(heads).get(read_state(path).site, [])
    found = verify_ledger(path, read_key(public_key) if public_key else None, anchors)
    if json_output:
        print(json.dumps(as_json(found, path), indent=2, allow_nan=False))
        return
    site = visible(shown(found.site, titles_beside(path)))
    print(f"{path}: {found.head.sequence} entries of site {site} hold, head {found.head}")
    if not public_key:
        print(f"note: no --public-key given; the file itself names {found.public_key}")
    if anchors:
        print(f"{len(anchors)} heads that another party kept are in it")
    else:
        print(
            "note: no head that another party kept is known (--heads, --anchor); entries cut off "
            "at the end would not be noticed"
        )
    for note in beyond_the_ceiling(found):
        print(f"note: {note}")


@app.command()
def export(
    path: Path = _PATH,
    out: Path = typer.Option(..., "--out", help="The file to write."),
    force: bool = typer.Option(
        False, "--force", help="Replace a file that is no earlier export of the same ledger."
    ),
    json_output: bool = options.JSON,
) -> None:
    """Write a copy for others to check, as JSON Lines.

    The commands verify and show read the copy as well. An earlier export of the same ledger is
    replaced; any other file is not, unless forced.
    """
    from fedllm.privacy.ledger.audit import export_ledger

    head = export_ledger(path, out, force)
    if json_output:
        print(json.dumps({"file": str(out), "entries": head.sequence, "head": str(head)}))
    else:
        print(f"{out}: {head.sequence} entries, head {head}")


@app.command("carry-over")
def carry_over(
    old: Path | None = typer.Argument(
        None, help="The earlier ledger, or an export of it; left out where none is left."
    ),
    kit: Path = typer.Option(..., metavar="KIT", help="The site's kit (the folder with its keys)."),
    epsilon: float | None = typer.Option(
        None,
        help="The most that was spent without OLD, or since it was copied; inf where nobody knows.",
    ),
    delta: float | None = typer.Option(None, help="The delta that belongs to it."),
    colluders_epsilon: float = typer.Option(
        math.inf, help="The same against all others colluding, if it was limited."
    ),
    unit: Unit = typer.Option("record", help="What was protected then."),
) -> None:
    """Charge to a new ledger what was spent before it.

    Needed after a site lost its keys or its ledger; it takes part in no round before. What is
    stated counts for all records of the site, for ever, and so does an earlier ledger, but for what
    it charged to accounts that the policy declared. Where no copy of the earlier ledger is left,
    state the ceiling that the site's policy had: more was never spent. Stated numbers add up with
    what comes, so the policy's epsilon and delta must both rise above them.
    """
    from fedllm.federation.site.carrying import Statement, carry_ledger, carry_statement
    from fedllm.federation.site.files import SiteFiles
    from fedllm.identity.kits import read_kit

    found = read_kit(kit, "site")
    files = SiteFiles.of_kit(found.folder)
    said = None
    if epsilon is not None and (delta is not None or math.isinf(epsilon)):
        said = Statement(epsilon, delta or 0.0, colluders_epsilon, unit)
    if (old is None or epsilon is not None or delta is not None) and said is None:
        raise ConfigError(
            "what was spent before is not clear",
            "give the earlier ledger, or both --epsilon and --delta",
        )
    if old is not None:
        carried = carry_ledger(old, files, found.identity, found.roster, said)
    elif said is not None:
        carried = carry_statement(said, files, found.identity, found.roster)
    count = sum(len(one.events) for one in carried)
    accounts = sorted({f"account '{one.account}'" for one in carried if one.account})
    whose = accounts if all(one.account for one in carried) else ["all records of this site"]
    charges = "1 earlier charge counts" if count == 1 else f"{count} earlier charges count"
    print(f"{files.ledger}: {charges} from now on, for {' and '.join(whose)}")
    if said is not None:
        print(
            "note: stated numbers add up with all that comes: to go on, budget.epsilon and "
            "budget.delta in site.toml must both be above them"
        )


def read_key(text: str) -> bytes:
    """Read 64 hexadecimal digits.

    Raises
    ------
    ConfigError
        If the text is anything else.
    """
    from fedllm.canonical import from_hex

    try:
        key = from_hex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ConfigError("--public-key is not 64 hex digits", "ask the site for its public key")
    return key
