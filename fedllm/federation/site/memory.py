"""What a site remembers of its ledger beside it, so that an older or a lost one is noticed."""

from __future__ import annotations

from pathlib import Path

from fedllm.canonical import canonical_json, read_object, reading
from fedllm.errors import ConfigError, RefusedError
from fedllm.files import overwrite, write_json
from fedllm.locks import in_turn
from fedllm.privacy.ledger.entries import Head

FORMAT = 2
# Of what is written over an earlier entry; the longest has 110 letters.
_LENGTH = 126


class SiteMemory:
    """The last entry of the site's ledger that this site has seen.

    A ledger that is restored from an older copy would give a budget back, and would repeat
    masks; alone it cannot tell. Several processes may use one file.

    Parameters
    ----------
    path : Path
        A JSON file of the site's own.
    at_once : bool
        As of `SiteFiles`.
    """

    def __init__(self, path: Path, at_once: bool = True) -> None:
        self._path = path
        self._at_once = at_once

    def used(self) -> bool:
        """Tell whether a ledger ever stood beside it."""
        return bool(self._read())

    def head(self) -> Head | None:
        """Return the ledger's last entry that is remembered; None in files of before."""
        entry = self._read().get("ledger")
        return Head.parse(entry) if isinstance(entry, str) else None

    def remember(self, head: Head) -> None:
        """Keep a later entry; an earlier one than is known changes nothing."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with in_turn(self._path.with_suffix(".lock")):
            known = self.head()
            if known is None or known.sequence < head.sequence:
                self._write(head)

    def begin_anew(self, head: Head) -> None:
        """Go over to another ledger, which took over what the one before had spent."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with in_turn(self._path.with_suffix(".lock")):
            self._write(head)

    def _write(self, head: Head) -> None:
        said = {"format": FORMAT, "ledger": str(head)}
        if self._at_once:
            write_json(self._path, said)
        else:
            overwrite(self._path, canonical_json(said).ljust(_LENGTH) + b"\n")

    def _read(self) -> dict[str, object]:
        if not self._path.exists():
            return {}
        # Fail closed: a site that has forgotten must not go on as if nothing was.
        damaged = RefusedError(
            "the site's memory of its ledger is damaged",
            "the site restores the file beside its ledger from a backup",
        )
        try:
            content = self._path.read_bytes()
        except OSError:
            raise damaged from None
        with reading(damaged):
            known = read_object(content)
            if not (_of_before(known) or _current(known)):
                raise damaged
        return known


def _current(known: dict[str, object]) -> bool:
    if set(known) != {"format", "ledger"} or known["format"] != FORMAT:
        return False
    try:
        return bool(Head.parse(str(known["ledger"])))
    except ConfigError:
        return False


def _of_before(known: dict[str, object]) -> bool:
    """Whether it is of a version that kept attempts here, by run."""
    return all(
        isinstance(entry, dict) and set(entry) == {"attempt", "survivors"}
        for entry in known.values()
    )
