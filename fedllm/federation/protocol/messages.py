"""What travels between the parties of a run, each message after its header.

Signed statements travel as the exact JSON text that was signed, so that no party has to
write the same bytes a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedllm.canonical import canonical_json, sha256_hex, signing_bytes
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.wire import Header, Wire

Purpose = Literal["update", "evaluation"]
# The coordinator's random identifier of a run, which stands in ledgers and journals.
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ROUND_LABEL: Literal["fedllm.round.v4"] = "fedllm.round.v4"


class CohortMember(Header):
    """What one site of a cohort says of itself for one run, signed by the site.

    Attributes
    ----------
    name : str
        The site's name in the roster.
    mask_key : str
        Public X25519 key, 64 hexadecimal digits.
    units : int
        About how many records or persons it has, where its sampling rate and noise follow from
        that; 0 where nothing does. See `Mechanism.announced_units`.
    signature : str
        The site's Ed25519 signature of `member_statement`, in hexadecimal.
    """

    name: str
    mask_key: str
    units: Annotated[int, Field(ge=0, lt=2**53)] = 0
    signature: str


def member_statement(run: str, name: str, mask_key: str, units: int) -> bytes:
    """Return the bytes that a site signs to bind its mask key and its size to one run."""
    return signing_bytes("fedllm.member.v3", run, name, mask_key, units)


class RoundStatement(Header):
    """What every party of a round must agree on; signed by the key authority.

    It names everything that a site's part in the sum depends on, and masks derive from it: sites
    that were told different things have masks that do not cancel.

    Attributes
    ----------
    run, round, attempt
        Which round; a round that failed is tried again under the next attempt.
    purpose : {"update", "evaluation"}
        Whether the sites train, or send scores of their held-out records.
    cohort : tuple of CohortMember
        The sites whose updates may be summed, sorted by name.
    min_sites : int
        The sum of fewer sites is not opened.
    plan, key : str
        SHA-256 of the encryption plan and of the round's public key.
    reveal_key : str
        Public X25519 key of this round, in hexadecimal, for which the survivors seal what
        takes their masks off.
    config, labels, bounds, model, adapter : str
        What the sites were sent beside it, see `OrderDigests`.
    noise_multiplier : float, optional
        Of the sum, with distributed noise; each site gives its share.
    kind : str
        Type and version of the statement.
    """

    kind: Literal["fedllm.round.v4"] = ROUND_LABEL
    run: RunId
    round: int
    attempt: int
    purpose: Purpose = "update"
    rounds: int
    cohort: tuple[CohortMember, ...]
    min_sites: int
    plan: str
    key: str
    reveal_key: str
    config: str
    labels: str
    bounds: str
    model: str
    adapter: str
    noise_multiplier: float | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal: what masks and a site's ledger are bound to."""
        said = canonical_json(self.model_dump(mode="json"))
        return sha256_hex(signing_bytes("fedllm.round-digest.v1", said))

    @property
    def series(self) -> str:
        """The run's attempts of one purpose, which are numbered on their own."""
        return self.run if self.purpose == "update" else f"{self.run}/{self.purpose}"

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the cohort's sites, in order."""
        return tuple(member.name for member in self.cohort)


def round_statement(text: str) -> bytes:
    """Return the bytes that the key authority signs for the JSON text of a `RoundStatement`."""
    return signing_bytes(ROUND_LABEL, text)


class SignedRound(Header):
    """A round as the key authority signed it.

    Attributes
    ----------
    statement : str
        JSON of the `RoundStatement`, exactly as signed.
    signature : str
        The key authority's signature of it, in hexadecimal.
    """

    statement: str
    signature: str


class SiteAnswer(Header):
    """A site's answer in a round, or its refusal."""

    site: str
    refusal: Refusal | None = None


class JoinHeader(Header):
    """The question to a site whether it takes part in a run, from round ``round`` on."""

    run: RunId
    round: int
    config: str
    labels: tuple[str, ...]
    model: str
    adapter_length: int


@dataclass(frozen=True)
class Join(Wire):
    """Coordinator to site: the question whether it takes part."""

    header: JoinHeader


class JoinedHeader(Header):
    """A site's yes: its signed entry in the cohort, or its no; and its name.

    The name of a no is what the site says of itself, for people to read.
    """

    site: str = ""
    member: CohortMember | None = None
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Joined(Wire):
    """Site to coordinator: yes or no."""

    header: JoinedHeader


class TrainHeader(SignedRound):
    """The order to train one round.

    Attributes
    ----------
    config : str
        The run configuration as TOML.
    labels : tuple of str
        Public labels of a classification task.
    bounds : tuple of (int, float)
        For each segment of the adapter its length and the bound of one coordinate.
    model : str
        Fingerprint of the base model.
    """

    config: str
    labels: tuple[str, ...]
    bounds: tuple[tuple[int, float], ...]
    model: str


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

    def digests(self) -> OrderDigests:
        """Return what the statement has to say of this order."""
        header = self.header
        return order_digests(
            header.config, header.labels, header.bounds, header.model, self.adapter
        )


class OrderDigests(Header):
    """SHA-256, in hexadecimal, of each thing that an order holds beside its statement.

    Attributes
    ----------
    config, labels, bounds, adapter : str
        Of the configuration's text, of the labels, of the bounds, of the adapter's bytes.
    model : str
        The base model's fingerprint, which is a SHA-256 already.
    """

    config: str
    labels: str
    bounds: str
    model: str
    adapter: str


def order_digests(
    config: str,
    labels: tuple[str, ...],
    bounds: tuple[tuple[int, float], ...],
    model: str,
    adapter: bytes,
) -> OrderDigests:
    """Return what a statement says of an order; see `TrainHeader` and `Train`."""
    listed = canonical_json([[length, float(bound)] for length, bound in bounds])
    return OrderDigests(
        config=sha256_hex(config),
        labels=sha256_hex(signing_bytes("fedllm.labels.v1", *labels)),
        bounds=sha256_hex(signing_bytes("fedllm.bounds.v1", listed)),
        model=model,
        adapter=sha256_hex(adapter),
    )


class TrainedHeader(SiteAnswer):
    """A site's answer to `TrainHeader`; the update brings its own signature.

    Attributes
    ----------
    ledger, ledger_signature : str
        Head of the site's ledger once this round is charged, ``SEQUENCE:HASH``, and the site's
        signature of that entry in hexadecimal: for the coordinator to keep. Empty with a
        refusal.
    """

    ledger: str = ""
    ledger_signature: str = ""


@dataclass(frozen=True)
class Trained(Wire):
    """Site to coordinator: the signed update (empty with a refusal)."""

    header: TrainedHeader
    update: bytes


class SettleHeader(SignedRound):
    """The question to the survivors of a round whether they agree on who is in the sum."""

    survivors: tuple[str, ...]


@dataclass(frozen=True)
class Settle(Wire):
    """Coordinator to survivor: these sites are in the sum."""

    header: SettleHeader
    plan: bytes


class SettledHeader(SiteAnswer):
    """A survivor's signature of its statement on the survivors, or its refusal."""

    signature: str = ""


@dataclass(frozen=True)
class Settled(Wire):
    """Survivor to coordinator: agreed, once and for all."""

    header: SettledHeader


class UnmaskHeader(SignedRound):
    """The survivors' statements, and the question for what opens their sum.

    ``signatures`` are in the order of ``survivors``.
    """

    survivors: tuple[str, ...]
    signatures: tuple[str, ...]


@dataclass(frozen=True)
class Unmask(Wire):
    """Coordinator to survivor: all agree; take your masks off."""

    header: UnmaskHeader
    plan: bytes


class UnmaskedHeader(SiteAnswer):
    """A survivor's reveal, sealed for the key authority and in hexadecimal, or its refusal."""

    reveal: str = ""


@dataclass(frozen=True)
class Unmasked(Wire):
    """Survivor to coordinator: what opens the sum of exactly the survivors."""

    header: UnmaskedHeader


class OpenRoundHeader(Header):
    """The coordinator's request for a round's key; the statement still lacks the key."""

    statement: str


@dataclass(frozen=True)
class OpenRound(Wire):
    """Coordinator to authority: make a key pair for this round."""

    header: OpenRoundHeader
    plan: bytes


class RoundOpenedHeader(Header):
    """The authority's answer: the completed statement and its signature, or a refusal."""

    statement: str = ""
    signature: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True)
class RoundOpened(Wire):
    """Authority to coordinator: the signed round and its public key."""

    header: RoundOpenedHeader
    public_key: bytes


class OpenSumHeader(SignedRound):
    """The coordinator's request to open a round's sum.

    With masks that allow for dropouts, ``signatures`` and ``reveals`` of the survivors, in
    their order, show that they agree and take their own masks off; else both are empty. The
    coordinator passes the reveals on and cannot read them.
    """

    survivors: tuple[str, ...]
    signatures: tuple[str, ...] = ()
    reveals: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenSum(Wire):
    """Coordinator to authority: open this sum."""

    header: OpenSumHeader
    total: bytes


class SumOpenedHeader(Header):
    """The authority's answer: how many updates the sum holds, or a refusal."""

    count: int = 0
    refusal: Refusal | None = None


@dataclass(frozen=True)
class SumOpened(Wire):
    """Authority to coordinator: the opened levels, uint64 little-endian."""

    header: SumOpenedHeader
    levels: bytes
