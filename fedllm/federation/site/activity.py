"""What a site was asked, what it sent and what it refused, written down for its own people.

A line a message, without a word or a figure that was computed from records: losses and times stay
in the site's log of rounds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedllm.canonical import canonical_json
from fedllm.clock import utc_now
from fedllm.federation.protocol.wire import Wire
from fedllm.federation.site.journal import Asked
from fedllm.federation.site.orders import Order
from fedllm.files import append_line, write_bytes
from fedllm.mechanisms import mechanism_of

NAME = "activity.jsonl"
# Some ten thousand messages; when there are more, the older half goes.
_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class SentUpdate:
    """What a site sends of a round: public facts of it, all of them of the order.

    Attributes
    ----------
    values, bits, size_bytes : int
        How many numbers, bits of each, and bytes of all as they leave.
    scheme : {"bfv", "ckks", "none"}
        How they are encrypted.
    masked : bool
        Whether they are hidden from whoever could decrypt them, too.
    noise : {"local", "distributed", "none"}
        Where noise is added: all of it here, this site's share of it, or nowhere.
    """

    run: str
    name: str
    round: int
    rounds: int
    attempt: int
    purpose: str
    values: int
    bits: int
    size_bytes: int
    scheme: str
    masked: bool
    noise: str


def sent_update(order: Order, update: bytes) -> SentUpdate:
    """Say what an order's update is."""
    statement, config, plan = order.statement, order.config, order.plan
    training = statement.purpose == "update"
    return SentUpdate(
        run=statement.run,
        name=config.name,
        round=statement.round,
        rounds=statement.rounds,
        attempt=statement.attempt,
        purpose="training" if training else "evaluation",
        values=plan.length,
        bits=plan.bits,
        size_bytes=len(update),
        scheme=plan.scheme,
        masked=plan.masked,
        noise=mechanism_of(config).wording.noise,
    )


class Activity:
    """Appends to the file; a failure is the caller's to swallow.

    Parameters
    ----------
    folder : Path
        The site's state.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME

    def sent(self, update: SentUpdate) -> None:
        """Write down an update that is about to leave."""
        self._append("sent", asdict(update))

    def answered(self, asked: Asked, answer: Wire) -> None:
        """Write down any other answer, by its size."""
        header, blobs = answer.to_wire()
        count = len(header.encode()) + sum(map(len, blobs.values()))
        self._append("answered", {**_about(asked), "size_bytes": count})

    def refused(self, asked: Asked, reason: str) -> None:
        """Write down a refusal, with the words that the journal has for it."""
        self._append("refused", {**_about(asked), "reason": reason})

    def _append(self, what: str, told: dict[str, Any]) -> None:
        self._keep_short()
        line = canonical_json({"at": utc_now(), "what": what, **told}).decode()
        append_line(self._path, line, durable=False)

    def _keep_short(self) -> None:
        try:
            if self._path.stat().st_size < _MOST_BYTES:
                return
        except FileNotFoundError:
            return
        content = self._path.read_bytes()
        begin = content.find(b"\n", len(content) // 2) + 1
        write_bytes(self._path, content[begin:], 0o600)


def _about(asked: Asked) -> dict[str, Any]:
    fields = ("message", "run", "name", "round", "rounds", "attempt", "purpose")
    return {name: getattr(asked, name) for name in fields}
