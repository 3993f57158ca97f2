"""The statement on which all parties of one attempt of a round agree, and its digest."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field

from fedllm.canonical import canonical_json, sha256_hex, signing_bytes
from fedllm.federation.protocol.wire import Header

Purpose = Literal["update", "evaluation"]
# The coordinator's random identifier of a run, which stands in ledgers and journals.
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ROUND_LABEL: Literal["fedllm.round.v5"] = "fedllm.round.v5"


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
    cohort : tuple of str
        The sites whose updates may be summed, sorted by name.
    members : str
        Digest of their entries, see `cohorts.cohort_digest`.
    neighbours, missing, colluders : int
        Who shares masks, see `MaskGraph`; all 0 where every two sites do.
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

    kind: Literal["fedllm.round.v5"] = ROUND_LABEL
    run: RunId
    round: int
    attempt: int
    purpose: Purpose = "update"
    rounds: int
    cohort: tuple[str, ...]
    members: str
    neighbours: Annotated[int, Field(ge=0)] = 0
    missing: Annotated[int, Field(ge=0)] = 0
    colluders: Annotated[int, Field(ge=0)] = 0
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
        return _digest(self)

    @property
    def series(self) -> str:
        """The run's attempts of one purpose, which are numbered on their own."""
        return self.run if self.purpose == "update" else f"{self.run}/{self.purpose}"


@lru_cache(maxsize=64)
def _digest(statement: RoundStatement) -> str:
    said = canonical_json(statement.model_dump(mode="json"))
    return sha256_hex(signing_bytes("fedllm.round-digest.v1", said))


def round_statement(text: str) -> bytes:
    """Return the bytes that the key authority signs for the JSON text of a `RoundStatement`."""
    return signing_bytes(ROUND_LABEL, text)
