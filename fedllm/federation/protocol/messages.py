"""What travels between the parties of a run, each message after its header.

Signed statements travel as the exact JSON text that was signed, so that no party has to
write the same bytes a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.canonical import canonical_json, sha256_hex, signing_bytes
from fedllm.federation.protocol.cohorts import CohortMember, Neighbourhood
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import RunId
from fedllm.federation.protocol.wire import Header, Wire


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


@dataclass(frozen=True)
class Draw(Wire):
    """Coordinator to site, in a large cohort: this is the round; draw your neighbours."""

    header: SignedRound


class DrawnHeader(SiteAnswer):
    """What a site draws its neighbours with, 64 hexadecimal digits, or its refusal."""

    seed: str = ""


@dataclass(frozen=True)
class Drawn(Wire):
    """Site to coordinator: the seed of its neighbours."""

    header: DrawnHeader


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
    around : Neighbourhood
        The site's own.
    """

    config: str
    labels: tuple[str, ...]
    bounds: tuple[tuple[int, float], ...]
    model: str
    around: Neighbourhood


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


@dataclass(frozen=True)
class Ready(Wire):
    """Coordinator to site whose update arrived: say whether you are still there."""

    header: SignedRound


@dataclass(frozen=True)
class Readied(Wire):
    """Site to coordinator: still there."""

    header: SiteAnswer


class SettleHeader(SignedRound):
    """The question to a survivor whether it agrees on who is in the sum; and its neighbourhood."""

    survivors: tuple[str, ...]
    around: Neighbourhood


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
    """Survivor to coordinator: agreed, once and for all.

    ``escrow`` is what opens the sum should this site go away, see `encryption.escrow`; empty with
    a refusal, or where too few would hold shares of it.
    """

    header: SettledHeader
    escrow: bytes


class UnmaskHeader(SignedRound):
    """The survivors, what those that this site asks for signed of them, and its neighbourhood.

    ``signatures`` are by name: of all survivors, or of those that the site drew.
    """

    survivors: tuple[str, ...]
    signatures: dict[str, str]
    around: Neighbourhood


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


class RecoverHeader(SignedRound):
    """Which survivors went away, what was signed of the survivors, and a site's neighbourhood.

    ``signatures`` are by name: of each one that went away, and of those that it would ask for.
    """

    survivors: tuple[str, ...]
    owners: tuple[str, ...]
    signatures: dict[str, str]
    around: Neighbourhood


@dataclass(frozen=True)
class Recover(Wire):
    """Coordinator to survivor: these went away; give your shares of what they left."""

    header: RecoverHeader
    plan: bytes


class RecoveredHeader(SiteAnswer):
    """A site's shares of what others left, in their order and in hexadecimal, or its refusal."""

    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recovered(Wire):
    """Survivor to coordinator: shares of what was left for the sum of exactly the survivors."""

    header: RecoveredHeader


class OpenRoundHeader(Header):
    """The coordinator's request for a round's key; the statement still lacks the key.

    ``members`` are the entries of its cohort, sorted by name.
    """

    statement: str
    members: tuple[CohortMember, ...]


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
