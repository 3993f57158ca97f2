"""How a coordinator gets the masks off a sum: draws, agreement on survivors, reveals, recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedllm.encryption.escrow import Escrow, unlock
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.survivors import holders_of
from fedllm.errors import FedllmError, PeerError
from fedllm.federation.coordinator.answers import all_answers, good_answers, too_few
from fedllm.federation.coordinator.parties import Sites
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.masks import check_settled, mask_scope
from fedllm.federation.protocol.messages import (
    Draw,
    Ready,
    Recover,
    RecoverHeader,
    Settle,
    SettleHeader,
    SignedRound,
    Unmask,
    UnmaskHeader,
)
from fedllm.federation.protocol.neighbours import Neighbourhoods, read_seed
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import hex_bytes, require
from fedllm.identity.roster import Roster


@dataclass(frozen=True)
class Proofs:
    """What the survivors gave to open their sum, in their order.

    Attributes
    ----------
    recovered : dict of str to str
        Survivors that gave no reveal themselves, and why.
    """

    signatures: tuple[str, ...] = ()
    reveals: tuple[str, ...] = ()
    recovered: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Agreed:
    """Survivors, what each signed, and what each left."""

    survivors: tuple[str, ...]
    signatures: Mapping[str, str]
    left: Mapping[str, bytes]


@dataclass
class Attempt:
    """What is asked of sites beside their updates.

    Attributes
    ----------
    about : dict of str to str
        The statement and its signature, as every question brings them.
    """

    sites: Sites
    roster: Roster
    statement: RoundStatement
    about: dict[str, str]
    plan: EncryptionPlan
    _around: Neighbourhoods | None = None

    def draw(self, members: Sequence[CohortMember]) -> dict[str, FedllmError]:
        """Let the sites of a large cohort draw their neighbours; returns those that did not."""
        seeds: dict[str, str] = {}
        failures: dict[str, FedllmError] = {}
        if self.statement.neighbours:
            drawn = self.sites.draw(Draw(SignedRound(**self.about)), self.statement.cohort)
            found, failures = good_answers(drawn, self.statement.cohort)
            for name, answer in found.items():
                try:
                    read_seed(name, answer.header.seed)
                    seeds[name] = answer.header.seed
                except PeerError as error:
                    failures[name] = error
        if len(self.statement.cohort) - len(failures) < self.statement.min_sites:
            there = len(self.statement.cohort) - len(failures)
            raise too_few(there, self.statement.min_sites, list(failures.values()))
        self._around = Neighbourhoods(self.statement, members, seeds)
        return failures

    @property
    def around(self) -> Neighbourhoods:
        """What each site has to know of its cohort, once all have drawn."""
        if self._around is None:
            raise RuntimeError("neighbours are drawn before anybody trains")
        return self._around

    def gone(self, survivors: tuple[str, ...]) -> dict[str, FedllmError]:
        """Return the sites that went away since their updates arrived.

        A site of the sum that is not there to settle on it costs the attempt, and some wait long
        for the slowest.
        """
        asked = self.sites.ready(Ready(SignedRound(**self.about)), survivors)
        return good_answers(asked, survivors)[1]

    def unmask(self, survivors: tuple[str, ...]) -> Proofs:
        """Let the survivors agree on who is in the sum, and take their masks off."""
        agreed = self._settle(survivors)
        unmasked = self.sites.unmask(lambda name: self._unmask(agreed, name), survivors)
        found, lost = good_answers(unmasked, survivors)
        reveals = {name: answer.header.reveal for name, answer in found.items()}
        if lost:
            reveals |= self._recover(agreed, tuple(found), lost)
        return Proofs(
            tuple(agreed.signatures[name] for name in survivors),
            tuple(reveals[name] for name in survivors),
            {name: str(error.message) for name, error in lost.items()},
        )

    def _settle(self, survivors: tuple[str, ...]) -> _Agreed:
        def question(name: str) -> Settle:
            around = self.around.of(name)
            header = SettleHeader(**self.about, survivors=survivors, around=around)
            return Settle(header, self.plan.to_bytes())

        settled = all_answers(self.sites.settle(question, survivors), survivors)
        signatures = {name: settled[name].header.signature for name in survivors}
        check_settled(mask_scope(self.statement, self.plan), survivors, signatures, self.roster)
        return _Agreed(survivors, signatures, {name: settled[name].escrow for name in survivors})

    def _unmask(self, agreed: _Agreed, name: str) -> Unmask:
        answering = self.around.answering(name, agreed.survivors)
        header = UnmaskHeader(
            **self.about,
            survivors=agreed.survivors,
            signatures={other: agreed.signatures[other] for other in answering},
            around=self.around.of(name),
        )
        return Unmask(header, self.plan.to_bytes())

    def _recover(
        self, agreed: _Agreed, there: tuple[str, ...], lost: Mapping[str, FedllmError]
    ) -> dict[str, str]:
        """Return the reveals of those who went away, from what they left.

        Raises
        ------
        FedllmError
            Why one of them went away, if it left nothing, or too few of its holders are there.
        """
        for name, error in lost.items():
            if not agreed.left[name]:
                raise error
        holders = {
            name: holders_of(self.around.answering(name, agreed.survivors), name) for name in lost
        }
        asked = {name: tuple(owner for owner in lost if name in holders[owner]) for name in there}
        helpers = tuple(name for name in there if asked[name])
        found, _ = good_answers(
            self.sites.recover(lambda name: self._recovery(agreed, name, asked[name]), helpers),
            helpers,
        )
        shares: dict[str, dict[int, bytes]] = {name: {} for name in lost}
        for name, answer in found.items():
            given = answer.header.shares
            require(len(given) == len(asked[name]), f"'{name}' gave other shares than it was asked")
            for owner, share in zip(asked[name], given, strict=True):
                shares[owner][holders[owner].index(name)] = hex_bytes(share)
        return {
            name: _unlocked(name, agreed.left[name], len(holders[name]), shares[name], error)
            for name, error in lost.items()
        }

    def _recovery(self, agreed: _Agreed, name: str, owners: tuple[str, ...]) -> Recover:
        asked = {
            other
            for owner in owners
            for other in (owner, *self.around.answering(owner, agreed.survivors))
        }
        header = RecoverHeader(
            **self.about,
            survivors=agreed.survivors,
            owners=owners,
            signatures={other: agreed.signatures[other] for other in sorted(asked)},
            around=self.around.of(name),
        )
        return Recover(header, self.plan.to_bytes())


def _unlocked(
    name: str, left: bytes, holders: int, shares: Mapping[int, bytes], error: FedllmError
) -> str:
    try:
        return unlock(Escrow.from_bytes(left), holders, shares).hex()
    except PeerError as failure:
        raise PeerError(
            f"{error.message}; and the others could not take its masks off: {failure.message}",
            error.remedy or failure.remedy,
        ) from None
