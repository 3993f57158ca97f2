"""What travels between the parties: a strict JSON header and named blobs of bytes.

Signed statements travel as the exact JSON text that was signed, so that no party has to
write the same bytes a second time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedllm.errors import (
    BudgetError,
    ConfigError,
    DataError,
    FedllmError,
    PeerError,
    RefusedError,
    RepeatError,
    TrainingError,
)

MAX_HEADER_BYTES = 16 << 20
_TRAVELLING = (
    RefusedError,
    BudgetError,
    DataError,
    ConfigError,
    TrainingError,
    PeerError,
    RepeatError,
)

Purpose = typing.Literal["update", "evaluation"]


class Header(BaseModel):
    """The JSON part of a message: frozen, no unknown keys, no conversions of type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Member(Header):
    """One site of a cohort and its X25519 key for this run, signed by the site.

    Attributes
    ----------
    name : str
        The site's name in the roster.
    mask_key : str
        Public X25519 key, 64 hexadecimal digits.
    signature : str
        The site's Ed25519 signature of `mask_key_statement`, in hexadecimal.
    """

    name: str
    mask_key: str
    signature: str


def mask_key_statement(run: str, name: str, mask_key: str) -> bytes:
    """Return the bytes that a site signs to bind its mask key to one run."""
    return json.dumps(["fedllm.mask-key.v1", run, name, mask_key]).encode()


class RoundStatement(Header):
    """What every party of a round must agree on; signed by the key authority.

    Attributes
    ----------
    run, round, attempt
        Which round; a round that failed is tried again under the next attempt.
    purpose : {"update", "evaluation"}
        Whether the sites train, or send scores of their held-out records.
    cohort : tuple of Member
        The sites whose updates may be summed, sorted by name.
    min_sites : int
        The sum of fewer sites is not opened.
    plan, key : str
        SHA-256 of the encryption plan and of the round's public key.
    reveal_key : str
        Public X25519 key of this round, in hexadecimal, for which the survivors seal what
        takes their masks off.
    config : str
        SHA-256 of the run configuration that the sites were sent.
    noise_multiplier : float, optional
        Of the sum, with distributed noise; each site gives its share.
    """

    kind: str = "fedllm.round.v1"
    run: str
    round: int
    attempt: int
    purpose: Purpose = "update"
    rounds: int
    cohort: tuple[Member, ...]
    min_sites: int
    plan: str
    key: str
    reveal_key: str
    config: str
    noise_multiplier: float | None = None

    @property
    def series(self) -> str:
        """The run's attempts of one purpose, which are numbered on their own."""
        return self.run if self.purpose == "update" else f"{self.run}/{self.purpose}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the cohort's sites, in order."""
        return tuple(member.name for member in self.cohort)


class JoinHeader(Header):
    """The question to a site whether it takes part in a run, from round ``round`` on."""

    run: str
    round: int
    config: str
    labels: tuple[str, ...]
    model: str
    adapter_length: int


class JoinedHeader(Header):
    """A site's yes: its name and its signed mask key, or its no."""

    member: Member | None = None
    refusal: Refusal | None = None


class Refusal(Header):
    """Why a party did not do what it was asked, without a word about its data.

    Attributes
    ----------
    kind : str
        Name of the error class; decides the exit code.
    message, remedy : str
        Words for a person.
    """

    kind: str
    message: str
    remedy: str = ""

    _KINDS: ClassVar[dict[str, type[FedllmError]]] = {kind.__name__: kind for kind in _TRAVELLING}

    @classmethod
    def of(cls, error: BaseException, full_text: bool) -> Refusal:
        """Describe an error; private text is left out unless ``full_text``.

        The words of a refusal by policy or budget, or of something twice, speak of public
        numbers only and always travel; every other error shrinks to its kind.
        """
        names = (kind.__name__ for kind in type(error).__mro__)
        kind = next((name for name in names if name in cls._KINDS), "FedllmError")
        # Subclasses, such as the ledger's own refusals, may name files of the site.
        public = type(error) in (RefusedError, BudgetError, RepeatError)
        if isinstance(error, FedllmError) and (full_text or public):
            return cls(kind=kind, message=error.message, remedy=error.remedy)
        if full_text:
            return cls(kind=kind, message=f"{type(error).__name__}: {error}")
        return cls(kind=kind, message=kind, remedy="the site's own log has the details")

    def to_error(self, who: str) -> FedllmError:
        """Return the error that this refusal stands for."""
        kind = self._KINDS.get(self.kind, FedllmError)
        return kind(f"{who}: {self.message}", self.remedy)


JoinedHeader.model_rebuild()


class TrainHeader(Header):
    """The order to train one round.

    Attributes
    ----------
    statement : str
        JSON of the `RoundStatement`, exactly as signed.
    signature : str
        The key authority's signature of it, in hexadecimal.
    config : str
        The run configuration as TOML; its SHA-256 stands in the statement.
    labels : tuple of str
        Public labels of a classification task.
    bounds : tuple of (int, float)
        For each segment of the adapter its length and the bound of one coordinate.
    """

    statement: str
    signature: str
    config: str
    labels: tuple[str, ...]
    bounds: tuple[tuple[int, float], ...]
    model: str


class TrainedHeader(Header):
    """A site's answer to `TrainHeader`: its signature, or its refusal."""

    site: str
    signature: str = ""
    refusal: Refusal | None = None


class SettleHeader(Header):
    """The question to the survivors of a round whether they agree on who is in the sum."""

    statement: str
    signature: str
    survivors: tuple[str, ...]


class SettledHeader(Header):
    """A survivor's signature of its statement on the survivors, or its refusal."""

    site: str
    signature: str = ""
    refusal: Refusal | None = None


class UnmaskHeader(Header):
    """The survivors' statements, and the question for what opens their sum.

    ``signatures`` are in the order of ``survivors``.
    """

    statement: str
    signature: str
    survivors: tuple[str, ...]
    signatures: tuple[str, ...]


class UnmaskedHeader(Header):
    """A survivor's reveal, sealed for the key authority and in hexadecimal, or its refusal."""

    site: str
    reveal: str = ""
    refusal: Refusal | None = None


class OpenRoundHeader(Header):
    """The coordinator's request for a round's key; the statement still lacks the key."""

    statement: str


class RoundOpenedHeader(Header):
    """The authority's answer: the completed statement and its signature, or a refusal."""

    statement: str = ""
    signature: str = ""
    refusal: Refusal | None = None


class OpenSumHeader(Header):
    """The coordinator's request to open a round's sum.

    With masks that allow for dropouts, ``signatures`` and ``reveals`` of the survivors, in
    their order, show that they agree and take their own masks off; else both are empty. The
    coordinator passes the reveals on and cannot read them.
    """

    statement: str
    signature: str
    survivors: tuple[str, ...]
    signatures: tuple[str, ...] = ()
    reveals: tuple[str, ...] = ()


class SumOpenedHeader(Header):
    """The authority's answer: how many updates the sum holds, or a refusal."""

    count: int = 0
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Wire:
    """Base of all messages: a dataclass with a ``header`` and fields of bytes."""

    def to_wire(self) -> tuple[str, dict[str, bytes]]:
        """Return the header as JSON and the blobs by name."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "header"]
        header: Header = self.header  # type: ignore[attr-defined]
        return header.model_dump_json(), {name: getattr(self, name) for name in names}

    @classmethod
    def from_wire(cls, header: str, blobs: Mapping[str, bytes]) -> Self:
        """Check and read what `to_wire` wrote.

        Raises
        ------
        PeerError
            If a part is missing, too many, or of the wrong form.
        """
        if len(header) > MAX_HEADER_BYTES:
            raise PeerError(f"a {cls.__name__} message has a header of {len(header)} bytes")
        hints = typing.get_type_hints(cls)
        expected = {name for name in hints if name != "header"}
        if set(blobs) != expected:
            raise PeerError(f"a {cls.__name__} message has the parts {sorted(blobs)}")
        return cls(header=parse_header(hints["header"], header), **blobs)  # type: ignore[call-arg]


H = typing.TypeVar("H", bound=Header)


def parse_header(kind: type[H], text: str) -> H:
    """Read a JSON header strictly.

    Raises
    ------
    PeerError
        If a key is unknown, missing or of the wrong type; values are not repeated.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        where = sorted({".".join(map(str, item["loc"])) for item in error.errors()})
        raise PeerError(f"a {kind.__name__} is malformed at {', '.join(where[:5])}") from None


@dataclass(frozen=True)
class Join(Wire):
    """Coordinator to site: the question whether it takes part."""

    header: JoinHeader


@dataclass(frozen=True)
class Joined(Wire):
    """Site to coordinator: yes or no."""

    header: JoinedHeader


@dataclass(frozen=True)
class Train(Wire):
    """Coordinator to site: train this round.

    ``plan`` and ``public_key`` are the encryption's; ``adapter`` holds float32
    (little-endian) in the manifest's order.
    """

    header: TrainHeader
    plan: bytes
    public_key: bytes
    adapter: bytes


@dataclass(frozen=True)
class Trained(Wire):
    """Site to coordinator: the sealed update (empty with a refusal)."""

    header: TrainedHeader
    update: bytes


@dataclass(frozen=True)
class Settle(Wire):
    """Coordinator to survivor: these sites are in the sum."""

    header: SettleHeader
    plan: bytes


@dataclass(frozen=True)
class Settled(Wire):
    """Survivor to coordinator: agreed, once and for all."""

    header: SettledHeader


@dataclass(frozen=True)
class Unmask(Wire):
    """Coordinator to survivor: all agree; take your masks off."""

    header: UnmaskHeader
    plan: bytes


@dataclass(frozen=True)
class Unmasked(Wire):
    """Survivor to coordinator: what opens the sum of exactly the survivors."""

    header: UnmaskedHeader


@dataclass(frozen=True)
class OpenRound(Wire):
    """Coordinator to authority: make a key pair for this round."""

    header: OpenRoundHeader
    plan: bytes


@dataclass(frozen=True)
class RoundOpened(Wire):
    """Authority to coordinator: the signed round and its public key."""

    header: RoundOpenedHeader
    public_key: bytes


@dataclass(frozen=True)
class OpenSum(Wire):
    """Coordinator to authority: open this sum."""

    header: OpenSumHeader
    total: bytes


@dataclass(frozen=True)
class SumOpened(Wire):
    """Authority to coordinator: the opened levels, uint64 little-endian."""

    header: SumOpenedHeader
    levels: bytes


def digest(value: str | bytes | dict[str, Any]) -> str:
    """Return the SHA-256 of text, bytes or canonical JSON, in hexadecimal."""
    if isinstance(value, dict):
        value = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()
