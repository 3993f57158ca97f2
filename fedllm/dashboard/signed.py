"""What sites signed in a run: the newest head of each ledger, and whether the signature holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fedllm.canonical import UNREADABLE, canonical_json, read_object
from fedllm.dashboard.files import Kept, Lines
from fedllm.errors import FedllmError
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.heads import signed_head
from fedllm.runs import names

Check = Literal["holds", "does not hold", "no key"]
_MOST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Signed:
    """The newest head of a site's ledger.

    Attributes
    ----------
    round, rounds : int
        In which it came, and in how many rounds one came.
    head : str
        ``SEQUENCE:HASH``.
    check : {"holds", "does not hold", "no key"}
        Whether the site's key in the roster beside the run signed it; "no key" where there is none.
    """

    round: int
    rounds: int
    head: str
    check: Check


@dataclass(frozen=True)
class Heads:
    """The newest heads by site, how many came in all, and the keys of the roster.

    Attributes
    ----------
    newest : mapping of str to Signed
        By site.
    count : int
        Of all rounds.
    keys : mapping of str to str
        Public keys (Ed25519, hex) of sites and of the authority, from the roster.
    signed_roster : bool
        Whether the federation's root key signed that roster; it is not checked here.
    """

    newest: Mapping[str, Signed] = field(default_factory=dict)
    count: int = 0
    keys: Mapping[str, str] = field(default_factory=dict)
    signed_roster: bool = False


class HeadsRead:
    """Reads ``ledger_heads.jsonl`` of a run as it grows.

    Parameters
    ----------
    folder : Path
        The run's. Its roster lies in it, or in the kit of the coordinator that carries it.
    """

    def __init__(self, folder: Path) -> None:
        self._lines = Lines(folder / names.HEADS)
        own, of_kit = folder / names.ROSTER, folder.absolute().parents[2:3]
        path = own if own.exists() or not of_kit else of_kit[0] / names.ROSTER
        self._roster = Kept(path, _roster)
        self._newest: dict[str, tuple[int, int, str, str]] = {}
        self._count = 0
        self._heads = Heads()

    def look(self, say: Callable[[str, str], None]) -> Heads:
        """Return what is known now; ``say`` hears of a line that cannot be read."""
        name = self._lines.path.name
        try:
            another, new = self._lines.new()
        except OSError as error:
            say(name, f"{name} cannot be read ({error.strerror})")
            return self._heads
        if another:
            self._newest, self._count = {}, 0
        for line in new:
            try:
                value = read_object(line)
                self._take(value)
            except UNREADABLE:
                say(name, f"{name}: a line is no head of a ledger and is left out")
        if self._roster.look() or another or new:
            self._heads = self._checked()
        return self._heads

    def _take(self, value: dict[str, Any]) -> None:
        number, site = int(value["round"]), str(value["site"])
        before, rounds, *_ = self._newest.get(site, (0, 0))
        # An evaluation at the sites has the round's number.
        rounds += number != before
        self._newest[site] = number, rounds, str(value["head"]), str(value["signature"])
        self._count += 1

    def _checked(self) -> Heads:
        roster, signed = self._roster.value or (None, False)
        newest = {
            site: Signed(number, rounds, head, _check(site, head, signature, roster))
            for site, (number, rounds, head, signature) in sorted(self._newest.items())
        }
        keys = {"authority": roster.authority, **roster.sites} if roster is not None else {}
        shown = {name: key.hex() for name, key in keys.items()}
        return Heads(newest, self._count, shown, signed)


def _check(site: str, head: str, signature: str, roster: Roster | None) -> Check:
    key = roster.sites.get(site) if roster is not None else None
    if key is None:
        return "no key"
    try:
        signed_head(head, signature, key, site)
    except FedllmError:
        return "does not hold"
    return "holds"


def _roster(path: Path) -> tuple[Roster, bool] | None:
    """Read the roster beside a run; None where it cannot be read.

    Who wrote it is not checked: a page has no root key of its own to check it with.
    """
    try:
        # Of a kit it may be a link.
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        value: dict[str, Any] = read_object(path.read_bytes())
        plain = value.get("roster", value)
        return Roster.from_json(canonical_json(plain)), plain is not value
    except (OSError, *UNREADABLE, FedllmError):
        return None
