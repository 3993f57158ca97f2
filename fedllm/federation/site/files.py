"""Where a site keeps what it must not lose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedllm.at_rest.log import SealedLog
from fedllm.privacy.ledger.store import Sync


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
    sync : {"entry", "commit", "together"}
        When the ledger's entries are on disk; see `Ledger.open`. A simulation alone says anything
        but "entry", of ledgers that end with its run: theirs are on disk before what came of a
        round is kept, and a loss of power may cost the run. No configuration can.
    sealed_log : SealedLog, optional
        Where the log is sealed, what it is written to instead.
    state : Path, optional
        The folder in which the site's people say that it is to pause (`Brake`) and see what it does
        (`Activity`). A simulation has neither.
    """

    ledger: Path
    memory: Path
    log: Path
    sync: Sync = "entry"
    sealed_log: SealedLog | None = None
    state: Path | None = None

    @property
    def at_once(self) -> bool:
        """Whether each line is on disk before anything else happens."""
        return self.sync == "entry"

    @classmethod
    def of_kit(cls, folder: Path) -> Self:
        """Return those of a deployed site, below the folder of its kit."""
        state = folder / "state"
        return cls(
            state / "ledger.sqlite", state / "memory.json", state / "rounds.jsonl", state=state
        )
