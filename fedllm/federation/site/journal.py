"""What a site's own journal says of each round and each refusal; nothing of it leaves the site."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fedllm.canonical import read_object
from fedllm.errors import PeerError, RefusedError, StorageError, one_line
from fedllm.federation.protocol.messages import Draw, Join, Ready, Recover, Settle, Train, Unmask

Request = Join | Draw | Train | Ready | Settle | Unmask | Recover

# Of other messages only refusals are told.
TOLD_WHEN_DONE = ("join", "train")
_MAX_NAMES = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Whose words name no record; `DataError` may quote one, and so may what nobody foresaw.
_SPEAKING = (RefusedError, PeerError, StorageError)
_PURPOSES = {"update": "training", "evaluation": "evaluation"}


@dataclass(frozen=True)
class Spent:
    """What a run has cost so far, and what a site has left.

    Attributes
    ----------
    run_epsilon : float
        Of the run, at ``delta``.
    delta : float
        The run's.
    left : float
        Below ``ceiling``, for the site's account.
    ceiling : float
        The site's, at ``ceiling_delta``.
    """

    run_epsilon: float
    delta: float
    left: float
    ceiling: float
    ceiling_delta: float

    def __str__(self) -> str:
        return (
            f"the run has spent epsilon {_shown(self.run_epsilon)} at delta {self.delta:g}, "
            f"{_shown(self.left)} of {_shown(self.ceiling)} at delta {self.ceiling_delta:g} is left"
        )


@dataclass(frozen=True)
class Asked:
    """What a message says that it is about, not yet checked; "?" for what it does not say."""

    message: str
    name: str = "?"
    run: str = "?"
    round: int | str = "?"
    rounds: int | str = "?"
    attempt: int | str = "?"
    purpose: str = "?"
    delta: float | None = None

    def __str__(self) -> str:
        run = f"run '{self.name}' ({self.run})"
        if self.message == "join":
            return f"{run}, from round {self.round} of {self.rounds} on, joining"
        what = "" if self.message == "train" else f", {self.message}"
        return (
            f"{run}, round {self.round} of {self.rounds}, attempt {self.attempt}, "
            f"{self.purpose}{what}"
        )


class Journal:
    """Writes a line for each round that a site carried out, and for each message it refused.

    Parameters
    ----------
    say : callable
        Takes one line; the service's standard error, which systemd keeps.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._names: dict[str, str] = {}

    def done(self, asked: Asked, seconds: float, spent: Spent | None) -> None:
        """Say that a message was carried out."""
        if asked.message == "join" and asked.name != "?":
            # Later questions do not name the run.
            self._names = {**dict([*self._names.items()][-_MAX_NAMES:]), asked.run: asked.name}
        if asked.message in TOLD_WHEN_DONE:
            self._line(asked, f"done in {seconds:.1f} s", spent)

    def refused(
        self, asked: Asked, error: BaseException, seconds: float, spent: Spent | None
    ) -> None:
        """Say that a message was refused, and why, without a word of a record."""
        self._line(asked, f"refused after {seconds:.1f} s: {reason_of(error)}", spent)

    def warn(self, text: str) -> None:
        """Say what else a person should know."""
        self._say(one_line(f"WARNING: {text}"))

    def _line(self, asked: Asked, what: str, spent: Spent | None) -> None:
        tail = f"; {spent}" if spent is not None else ""
        self._say(one_line(f"{self._named(asked)}: {what}") + tail)

    def _named(self, asked: Asked) -> str:
        known = self._names.get(asked.run, "?") if asked.name == "?" else asked.name
        return str(Asked(**{**vars(asked), "name": known}))


def asked_by(request: Request) -> Asked:
    """Read what a message is about, whoever sent it and whatever is wrong with it."""
    message = type(request).__name__.lower()
    header = request.header
    if isinstance(request, Join):
        config = _table(request.header.config)
        said = {"run": request.header.run, "round": request.header.round}
        said["rounds"] = config.get("rounds", {}).get("count")
    else:
        config = _table(request.header.config) if isinstance(request, Train) else {}
        said = _object(header.statement)  # type: ignore[union-attr]
    purpose = _PURPOSES.get(str(said.get("purpose", "update")), "?")
    return Asked(
        message,
        _name(config.get("name")),
        _name(said.get("run")),
        _number(said.get("round")),
        _number(said.get("rounds")),
        _number(said.get("attempt")),
        purpose,
        _delta(config.get("privacy")),
    )


def reason_of(error: BaseException) -> str:
    """Say why something was refused, without a word of a record."""
    kind = type(error).__name__
    if not isinstance(error, _SPEAKING):
        return f"{kind} (the site's log of rounds has the details)"
    return f"{kind}: {error.message}"


def _shown(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.4g}"


def _table(text: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError):
        # A number of thousands of digits is no TOMLDecodeError.
        return {}
    sections = {name: values.get(name) for name in ("rounds", "privacy")}
    return values | {n: s if isinstance(s, dict) else {} for n, s in sections.items()}


def _object(text: str) -> dict[str, Any]:
    try:
        return read_object(text)
    except ValueError:
        return {}


def _name(value: Any) -> str:
    return value if isinstance(value, str) and _NAME.fullmatch(value) else "?"


def _delta(section: Any) -> float | None:
    delta = section.get("delta") if isinstance(section, dict) else None
    return delta if isinstance(delta, float) and 0 < delta < 1 else None


def _number(value: Any) -> int | str:
    return value if type(value) is int and 0 <= value < 10**9 else "?"
