"""The form of an export of a ledger, and what tells it from a ledger or another file."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedllm.canonical import canonical_json, from_hex, read_json, read_object, reading
from fedllm.privacy.ledger.entries import NoLedgerError, RawEntry, TamperedError
from fedllm.privacy.ledger.store import SQLITE, TRACES, Store

FIRST_PAGE = 1 << 16
_LINE = {"content", "hash", "signature", "tags"}
_EXPORTED = (b'"content"', b'"hash"', b'"signature"')


def exported(path: Path) -> bytes:
    """Return a ledger's entries as lines of an export; the same errors as `stored_entries`."""
    stored, stored_tags = stored_entries(path)
    tags = {sequence: rest for sequence, *rest in stored_tags}
    lines = []
    for raw in stored:
        line: dict[str, Any] = {
            "content": read_json(raw.content),
            "hash": raw.hash.hex(),
            "signature": raw.signature.hex(),
        }
        if raw.sequence in tags:
            records, persons = (base64.b64encode(part).decode() for part in tags[raw.sequence])
            line["tags"] = {"records": records, "persons": persons}
        lines.append(canonical_json(line) + b"\n")
    return b"".join(lines)


def is_export(path: Path) -> bool:
    """Tell whether a file is an export of a ledger, and not a ledger itself.

    Raises
    ------
    NoLedgerError
        If it cannot be read, or never was either.
    TamperedError
        If only traces of a ledger are left in it, or nothing.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(FIRST_PAGE)
    except OSError as error:
        raise NoLedgerError(f"cannot read {path}: {error.strerror}", _remedy(path)) from error
    if start.startswith(SQLITE):
        return False
    if _looks_exported(start):
        return True
    if not start.strip(b"\0") or has_traces(start):
        raise TamperedError(f"{path} is a damaged ledger: its start is gone")
    raise NoLedgerError(
        f"{path} is not a ledger",
        "give the ledger of a site (ledgers/SITE.sqlite of a simulation, state/ledger.sqlite of a "
        "kit), or what fedllm ledger export wrote",
    )


def _looks_exported(start: bytes) -> bool:
    return all(word in start for word in _EXPORTED)


def has_traces(start: bytes) -> bool:
    """Tell whether the first page of a file holds what is left of a ledger."""
    # The first page holds the identity and the triggers, wherever its start was written over.
    return not _looks_exported(start) and any(word in start for word in TRACES)


def _remedy(path: Path) -> str:
    if path.is_dir():
        return "give one ledger: ledgers/SITE.sqlite of a simulation, state/ledger.sqlite of a kit"
    return "check the path; a site that was never charged has no ledger yet"


def refuse_other_files(path: Path) -> None:
    """See that a path leads to a ledger or an export of one, in whatever state.

    Raises
    ------
    NoLedgerError
        If it does not.
    """
    with suppress(TamperedError):
        is_export(path)


def stored_entries(path: Path) -> tuple[list[RawEntry], list[tuple[int, bytes, bytes]]]:
    """Return the entries of a ledger or an export, not yet checked, and the tags of some.

    Raises
    ------
    NoLedgerError, TamperedError
        As `is_export`; also if a line of an export is not as it was written.
    """
    if not is_export(path):
        with Store(path).read() as view:
            return list(view.entries()), list(view.tags())
    rows = list(_exported_lines(path))
    return [raw for raw, _ in rows], [tags for _, tags in rows if tags is not None]


def _exported_lines(
    path: Path,
) -> Iterator[tuple[RawEntry, tuple[int, bytes, bytes] | None]]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        with reading(TamperedError(f"{path}: line {number} is not as it was exported")):
            row = _exported(number, line)
        yield row


def _exported(number: int, line: bytes) -> tuple[RawEntry, tuple[int, bytes, bytes] | None]:
    value = read_object(line)
    # Byte by byte as it was written: no other spelling of a number.
    if canonical_json(value) != line or not set(value) <= _LINE:
        raise ValueError("form")
    content = canonical_json(value["content"])
    raw = RawEntry(number, content, from_hex(value["hash"]), from_hex(value["signature"]))
    return raw, _exported_tags(number, value.get("tags"))


def _exported_tags(number: int, tags: Mapping[str, str] | None) -> tuple[int, bytes, bytes] | None:
    if tags is None:
        return None
    records, persons = (
        base64.b64decode(tags[kind], validate=True) for kind in ("records", "persons")
    )
    return number, records, persons
