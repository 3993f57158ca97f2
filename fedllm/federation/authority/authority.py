"""The key authority: makes one key pair a round and opens one sum with it, once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.encryption.update import opened_levels
from fedllm.errors import FedllmError, PeerError, RefusedError, RepeatError, one_line
from fedllm.federation.protocol.masks import mask_scope, reveal_purpose, take_masks_off
from fedllm.federation.protocol.messages import (
    OpenRound,
    OpenSum,
    OpenSumHeader,
    RoundOpened,
    RoundOpenedHeader,
    SumOpened,
    SumOpenedHeader,
)
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import RoundStatement, round_statement
from fedllm.federation.protocol.statements import (
    check_cohort,
    check_members,
    hex_bytes,
    parse_statement,
    read_statement,
    require,
    require_cohort,
)
from fedllm.files import explained
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.identity.sealing import SealingKey


class RoundKey(Protocol):
    """The secret key of one round, wherever it lives."""

    @property
    def plan(self) -> EncryptionPlan:
        """Parameters of the round."""
        ...

    def public_context(self) -> bytes:
        """Return the public key for the sites."""
        ...

    def decrypt_sum(self, blob: bytes) -> NDArray[np.uint64]:
        """Open the one sum that this key opens."""
        ...

    def wipe(self) -> None:
        """Forget the secret key."""
        ...


class OpenedRounds:
    """Remembers in memory which rounds were opened, so that none is opened twice."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, int]] = set()

    def add(self, statement: RoundStatement) -> None:
        """Note that a key for this attempt of a round is about to be made.

        Raises
        ------
        RepeatError
            If there was one before.
        """
        which = (statement.series, statement.round, statement.attempt)
        if which in self._seen:
            raise RepeatError(
                f"round {statement.round}, attempt {statement.attempt} was opened before",
                "ask under a new attempt",
            )
        self._seen.add(which)

    def summed(self, statement: RoundStatement, survivors: Sequence[str]) -> None:
        """Note that the sum of these sites was opened."""


class Authority:
    """Holds the secret key of the current round, and nothing else of value.

    Parameters
    ----------
    identity : Identity
        The authority's signing key.
    roster : Roster
        The federation's parties.
    min_cohort : int
        Rounds whose sum could be opened with fewer sites are refused.
    make_key : callable
        Makes the key of a round: in this process, or `SecretKeyProcess` in one of its own.
    opened : OpenedRounds, optional
        Remembers which rounds were opened; in memory by default.
    full_errors : bool
        Whether refusals carry the text of unforeseen errors (simulation).
    say : callable
        Hears, a line each, which rounds and sums were opened or refused; the service's journal.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        min_cohort: int,
        *,
        make_key: Callable[[EncryptionPlan], RoundKey] = SecretRoundKey.generate,
        opened: OpenedRounds | None = None,
        full_errors: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._identity = identity
        self._roster = roster
        self._min_cohort = min_cohort
        self._make_key = make_key
        self._full_errors = full_errors
        self._say = say
        self._opened = opened or OpenedRounds()
        self._statement = ""
        self._secret: RoundKey | None = None
        self._sealing: SealingKey | None = None

    def open_round(self, request: OpenRound) -> RoundOpened:
        """Make a fresh key pair and sign the round with it; the key before is forgotten.

        A round is opened at most once: the same run, round and attempt again is refused.
        """
        about = f"{_which(request.header.statement)}: "
        try:
            opened = self._open_round(request)
        except (FedllmError, OSError) as error:
            refusal = self._refusal(f"{about}not opened", error)
            return RoundOpened(RoundOpenedHeader(refusal=refusal), b"")
        self._tell(f"{about}a key was made")
        return opened

    def open_sum(self, request: OpenSum) -> SumOpened:
        """Open the sum of the round that is open, once, and forget its key."""
        about = f"{_which(request.header.statement)}: "
        try:
            opened = self._open_sum(request)
        except (FedllmError, OSError) as error:
            refusal = self._refusal(f"{about}its sum was not opened", error)
            return SumOpened(SumOpenedHeader(refusal=refusal), b"")
        finally:
            self.forget()
        self._tell(f"{about}the sum of {opened.header.count} sites was opened")
        return opened

    def forget(self) -> None:
        """Wipe the secret key of the current round."""
        if self._secret is not None:
            self._secret.wipe()
        self._secret = None
        self._sealing = None
        self._statement = ""

    def _tell(self, text: str) -> None:
        # Each answer is given once: a journal that cannot be written must not cost it.
        with suppress(Exception):
            self._say(one_line(text))

    def _refusal(self, what: str, error: Exception) -> Refusal:
        found = explained(error)
        words = found.message if isinstance(found, FedllmError) else str(found)
        self._tell(f"{what}: {type(found).__name__}: {words}")
        return Refusal.of_authority(found, self._full_errors)

    def _open_round(self, request: OpenRound) -> RoundOpened:
        proposal = parse_statement(request.header.statement)
        check_cohort(proposal, self._roster)
        check_members(proposal, request.header.members, self._roster)
        require_cohort(proposal, self._min_cohort)
        plan = EncryptionPlan.from_bytes(request.plan)
        require(plan.fingerprint() == proposal.plan, "the plan is not that of the round")
        require(plan.max_sites >= len(proposal.cohort), "the plan is for a smaller cohort")
        self.forget()
        # Known for good before there is a key: a crash in between loses the attempt, no more.
        self._opened.add(proposal)
        self._secret, self._sealing = self._make_key(plan), SealingKey()
        public = self._secret.public_context()
        keys = {
            "key": PublicRoundKey.from_bytes(plan, public).fingerprint,
            "reveal_key": self._sealing.public_bytes().hex(),
        }
        self._statement = proposal.model_copy(update=keys).model_dump_json()
        signature = self._identity.sign(round_statement(self._statement)).hex()
        header = RoundOpenedHeader(statement=self._statement, signature=signature)
        return RoundOpened(header, public)

    def _open_sum(self, request: OpenSum) -> SumOpened:
        statement = read_statement(request.header.statement, request.header.signature, self._roster)
        open_now = request.header.statement == self._statement
        if self._secret is None or self._sealing is None or not open_now:
            raise RepeatError("this round is not open", "open it, or go on to the next attempt")
        survivors = request.header.survivors
        require(list(survivors) == sorted(set(survivors)), "the survivors are not in order")
        require(set(survivors) <= set(statement.cohort), "a survivor is not in the cohort")
        if len(survivors) < max(statement.min_sites, self._min_cohort):
            raise RefusedError(
                f"the sum holds {len(survivors)} sites; at least "
                f"{max(statement.min_sites, self._min_cohort)} are needed",
                "repeat the round with more sites",
            )
        plan = self._secret.plan
        slots = self._secret.decrypt_sum(request.total)
        if request.header.reveals:
            require(plan.masked, "a round without masks came with reveals of masks")
            slots = take_masks_off(
                slots,
                mask_scope(statement, plan),
                survivors,
                self._signatures(request.header),
                self._unsealed(self._sealing, statement, request.header),
                self._roster,
            )
        self._opened.summed(statement, survivors)
        levels = opened_levels(slots, request.total, plan, len(survivors), statement.digest)
        return SumOpened(SumOpenedHeader(count=len(survivors)), levels.astype("<u8").tobytes())

    @staticmethod
    def _signatures(header: OpenSumHeader) -> dict[str, str]:
        count = len(header.survivors)
        require(len(header.signatures) == count, "a survivor's signature is missing")
        return dict(zip(header.survivors, header.signatures, strict=True))

    @staticmethod
    def _unsealed(key: SealingKey, statement: RoundStatement, header: OpenSumHeader) -> list[bytes]:
        require(len(header.reveals) == len(header.survivors), "a survivor's reveal is missing")
        pairs = zip(header.survivors, header.reveals, strict=True)
        return [key.open(hex_bytes(text), reveal_purpose(statement, site)) for site, text in pairs]


def _which(text: str) -> str:
    """Say which round a statement is about, whoever wrote it."""
    try:
        statement = parse_statement(text)
    except PeerError:
        return "a round whose statement cannot be read"
    return (
        f"run {statement.run}, round {statement.round} of {statement.rounds}, attempt "
        f"{statement.attempt}, {statement.purpose}, {len(statement.cohort)} sites"
    )
