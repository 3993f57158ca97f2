"""Where a site keeps what it must not lose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedllm.at_rest.log import SealedLog


@dataclass(frozen=True)
class SiteFiles:
    """A site's own files.

    Attributes
    ----------
    ledger : Path
        The privacy ledger.
    memory : Path
        What the site remembers of its ledger; see `SiteMemory`.
    log : Path
        The site's own log of rounds, with losses and timings; never sent.
    at_once : bool
        Whether each line and entry is on disk before anything else happens. A simulation alone
        says no, of ledgers that end with its run: theirs are on disk before an update leaves, and
        a loss of power may cost the run. No configuration can.
    sealed_log : SealedLog, optional
        Where the log is sealed, what it is written to instead.
    """

    ledger: Path
    memory: Path
    log: Path
    at_once: bool = True
    sealed_log: SealedLog | None = None

    @classmethod
    def of_kit(cls, folder: Path) -> Self:
        """Return those of a deployed site, below the folder of its kit."""
        state = folder / "state"
        return cls(state / "ledger.sqlite", state / "memory.json", state / "rounds.jsonl")
