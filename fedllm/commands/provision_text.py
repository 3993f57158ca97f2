"""What ``fedllm provision`` tells the operator, in words, in a table and as JSON."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm.words import safe, table

if TYPE_CHECKING:
    from fedllm.identity.issuing import Provisioned

_SOON_DAYS = 30


def say(folder: Path, done: Provisioned) -> None:
    """Say what changed, and what to do with it."""
    from fedllm.identity.enrolment import root_fingerprint
    from fedllm.identity.operator_keys import is_protected

    if done.roster is not None:
        print(
            f"roster {done.roster.version}: {len(done.roster.sites)} sites, coordinator at "
            f"{done.roster.address}, valid until {done.roster.expires:%Y-%m-%d}\n"
            f"root key {root_fingerprint(done.root)}\n"
            f"Kits in {folder / 'kits'} have this roster. Elsewhere: send {folder / 'roster.json'} "
            "and install it with\n  fedllm client update-roster roster.json --kit KIT   "
            "(or authority, server)"
        )
    for note in done.notes:
        print(f"note: {note}")
    if not is_protected(folder):
        print(
            f"note: the keys in {folder} are not encrypted; to protect them with a passphrase: "
            f"fedllm provision passphrase --dir {folder}"
        )


def as_json(folder: Path, done: Provisioned) -> dict[str, Any]:
    """Return plain values: who takes part, by which keys, and what expires when."""
    from fedllm.identity.enrolment import root_fingerprint
    from fedllm.identity.issuing import server_certificate
    from fedllm.identity.operator_keys import is_protected

    certificate, roster = server_certificate(folder), done.roster
    return {
        "federation": done.state.config.name,
        "root": done.root.hex(),
        "root_fingerprint": root_fingerprint(done.root),
        "keys_encrypted": is_protected(folder),
        "address": done.state.config.address,
        "min_cohort": done.state.config.min_cohort,
        "roster": roster
        and {
            "version": roster.version,
            "expires": roster.expires and roster.expires.isoformat(),
        },
        "server_certificate_expires": certificate and certificate.not_valid_after_utc.isoformat(),
        "parties": [
            {
                "name": member.name,
                "title": done.state.titles.get(member.name),
                "role": member.role,
                "signing_key": member.signing_key,
                "keys_made": "here" if member.made_here else "by the party",
                "since": member.since.isoformat(),
            }
            for member in done.state.members
        ],
        "revoked": [
            {"name": r.name, "signing_key": r.signing_key, "at": r.at.isoformat()}
            for r in done.state.revoked
        ],
        "kits_made": list(done.kits),
        "notes": list(done.notes),
    }


def print_table(folder: Path, done: Provisioned) -> None:
    """Print who takes part, and what expires when."""
    from rich.console import Console

    from fedllm.identity.enrolment import root_fingerprint
    from fedllm.identity.issuing import server_certificate
    from fedllm.identity.titles import shown

    console = Console()
    console.print(
        f"Federation [bold]{safe(done.state.config.name)}[/bold], coordinator at "
        f"{done.state.config.address}, sums of at least {done.state.config.min_cohort} sites\n"
        f"root key {root_fingerprint(done.root)}"
    )
    parties = table("Party", "Role", "Keys made", "Since", "Signing key")
    for member in done.state.members:
        made = "here" if member.made_here else "by the party"
        since = f"{member.since:%Y-%m-%d}"
        name = shown(member.name, done.state.titles)
        parties.add_row(safe(name), member.role, made, since, member.signing_key[:16])
    for gone in done.state.revoked:
        parties.add_row(
            safe(gone.name), "revoked", "", f"{gone.at:%Y-%m-%d}", gone.signing_key[:16]
        )
    console.print(parties)
    certificate = server_certificate(folder)
    if done.roster and done.roster.expires:
        console.print(_lasts(f"roster {done.roster.version}", done.roster.expires))
    else:
        console.print("no roster yet: the key authority's request is awaited")
    if certificate:
        console.print(_lasts("the coordinator's certificate", certificate.not_valid_after_utc))


def _lasts(what: str, until: datetime) -> str:
    days = (until - datetime.now(UTC)).days
    advice = "" if days >= _SOON_DAYS else "   -> run: fedllm provision renew"
    return f"{what}: valid until {until:%Y-%m-%d} ({days} days){advice}"
