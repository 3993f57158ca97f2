"""What left a site, round by round, and what it refused, in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedllm.canonical import UNREADABLE
from fedllm.dashboard.wording import size
from fedllm.overview.values import number, text

_OF = {
    "training": "changes of the shared model's trained numbers",
    "evaluation": "sums of how well the shared model did on held-out records",
}
_SCHEMES = {"bfv": "encrypted (BFV)", "ckks": "encrypted (CKKS)", "none": "not encrypted"}
_NOISE = {
    "local": "with all of the noise added here",
    "distributed": "with this site's share of the noise",
    "none": "without noise: not differentially private",
}
_MASKED = "masked, so that no single site's part can be opened"
_BARE = "not masked: who holds the round's key can open this site's part"


@dataclass(frozen=True)
class Sent:
    """What a site sent of one round.

    Attributes
    ----------
    when : str
        In UTC.
    run, name : str
        The run's identifier, and what people call it.
    round, rounds, attempt : int
        Which round, of how many, and which try of it.
    purpose : str
        "training" or "evaluation".
    values, size_bytes : int
        How many numbers, and bytes of all of them as they left.
    other_bytes : int
        Of all other answers in this round: signatures, keys, sizes.
    encrypted, masked, noised : bool
        How they are protected.
    what, how : str
        The same in words.
    """

    when: str
    run: str
    name: str
    round: int
    rounds: int
    attempt: int
    purpose: str
    values: int
    size_bytes: int
    other_bytes: int
    encrypted: bool
    masked: bool
    noised: bool
    what: str
    how: str


@dataclass(frozen=True)
class Refused:
    """What a site refused.

    Attributes
    ----------
    when : str
        In UTC.
    name : str
        The run, as people call it, or its identifier.
    message, round, reason : str
        What was asked, of which round, and why it was refused.
    """

    when: str
    name: str
    message: str
    round: str
    reason: str


@dataclass(frozen=True)
class Traffic:
    """All that is known of what left, the latest first."""

    sent: tuple[Sent, ...]
    refused: tuple[Refused, ...]


def traffic_of(lines: Iterable[Mapping[str, Any]]) -> Traffic:
    """Put together what the lines of a site's activity say; those that say nothing are left out."""
    known = list(lines)
    names = {
        line["run"]: line["name"]
        for line in known
        if isinstance(line.get("run"), str)
        and isinstance(line.get("name"), str)
        and line["name"] != "?"
    }
    beside: dict[tuple[Any, ...], int] = {}
    sent: list[Mapping[str, Any]] = []
    refused: list[Refused] = []
    for line in known:
        try:
            if line["what"] == "answered":
                key = _which(line)
                beside[key] = beside.get(key, 0) + int(line["size_bytes"])
            elif line["what"] == "sent":
                sent.append(line)
            elif line["what"] == "refused":
                refused.append(_refused(line, names))
        except UNREADABLE:
            continue
    told: list[Sent] = []
    for line in sent:
        try:
            told.append(_sent(line, beside.get(_which(line), 0)))
        except UNREADABLE:
            continue
    return Traffic(tuple(reversed(told)), tuple(reversed(refused)))


def _which(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return line["run"], line["round"], line["attempt"], line["purpose"]


def _sent(line: Mapping[str, Any], other_bytes: int) -> Sent:
    values, count = number(line["values"]), number(line["size_bytes"])
    scheme, noise, masked = line["scheme"], line["noise"], line["masked"] is True
    protection = [_SCHEMES[scheme], _MASKED if masked else _BARE, _NOISE[noise]]
    return Sent(
        text(line["at"]),
        text(line["run"]),
        text(line["name"]),
        number(line["round"]),
        number(line["rounds"]),
        number(line["attempt"]),
        line["purpose"],
        values,
        count,
        other_bytes,
        scheme != "none",
        masked,
        noise != "none",
        f"{values:,} numbers: {_OF[line['purpose']]}; {size(count)}",
        "; ".join(protection),
    )


def _refused(line: Mapping[str, Any], names: Mapping[str, str]) -> Refused:
    run = str(line["run"])
    name = str(line["name"]) if line["name"] != "?" else names.get(run, run)
    return Refused(
        text(line["at"]),
        text(name),
        text(line["message"]),
        text(str(line["round"])),
        text(line["reason"]),
    )
