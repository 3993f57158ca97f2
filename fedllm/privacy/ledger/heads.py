"""Heads of sites' ledgers as another party keeps them, one line each in ``ledger_heads.jsonl``.

Whoever has them can tell, years later, that a ledger was cut, replaced by an older copy or
begun anew. Each is signed by its site, so that no keeper can accuse a site of what it did not
do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from fedllm.canonical import from_hex, read_object, reading
from fedllm.errors import ConfigError, PeerError
from fedllm.files import append_line, write_bytes
from fedllm.privacy.ledger.entries import Head, signature_holds


def signed_head(text: str, signature: str, public_key: bytes, site: str) -> Head:
    """Return a head that a site sent.

    Parameters
    ----------
    text : str
        ``SEQUENCE:HASH``.
    signature : str
        The site's signature of the entry, in hex.
    public_key : bytes
        The site's raw Ed25519 key, from the roster.
    site : str
        Its name.

    Raises
    ------
    PeerError
        If it is malformed or not signed with that key.
    """
    try:
        head = Head.parse(text)
        held = signature_holds(public_key, from_hex(head.hash), from_hex(signature))
    except (ConfigError, ValueError):
        held = False
    if not held:
        raise PeerError(f"'{site}' did not sign the head of its ledger")
    return Head(head.sequence, head.hash, signature)


def keep_heads(path: Path, run: str, number: int, heads: Mapping[str, Head]) -> None:
    """Append the heads that sites sent in a round, durably; what a crash cut off is removed.

    Raises
    ------
    FedllmError
        If the disk is full.
    """
    lines = [
        json.dumps(
            {
                "run": run,
                "round": number,
                "site": site,
                "head": str(head),
                "signature": head.signature,
            }
        )
        for site, head in sorted(heads.items())
    ]
    if not lines:
        return
    if path.exists():
        content = path.read_bytes()
        if (whole := _whole_lines(content)) != content:
            write_bytes(path, whole)
    append_line(path, "\n".join(lines))


def read_heads(path: Path) -> dict[str, list[Head]]:
    """Read a file of `keep_heads`: the heads of each site, in the order in which they came.

    A last line that a crash cut off is left out.

    Raises
    ------
    ConfigError
        If it cannot be read; names the line.
    """
    try:
        lines = _whole_lines(path.read_bytes()).splitlines()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({type(error).__name__})",
            "give the ledger_heads.jsonl that the coordinator keeps in a run's folder",
        ) from None
    found: dict[str, list[Head]] = {}
    for number, line in enumerate(lines, start=1):
        damaged = ConfigError(
            f"{path}, line {number}: no head of a ledger",
            "give the file as the coordinator keeps it",
        )
        with reading(damaged):
            value = read_object(line)
            head, signature = _parsed(value["head"]), value["signature"]
            from_hex(signature)
            if not isinstance(value["site"], str) or head is None:
                raise damaged
            found.setdefault(value["site"], []).append(Head(head.sequence, head.hash, signature))
    return found


def _parsed(text: str) -> Head | None:
    try:
        return Head.parse(text)
    except ConfigError:
        return None


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]


def went_back(before: Mapping[str, Head], now: Mapping[str, Head]) -> Sequence[str]:
    """Return the sites whose ledger is shorter than it was, or another of the same length."""
    return [
        site
        for site, head in sorted(now.items())
        if site in before
        and (
            head.sequence < before[site].sequence
            or (head.sequence == before[site].sequence and head.hash != before[site].hash)
        )
    ]
