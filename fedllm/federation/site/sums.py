"""What a site does for a sum that it is in: masks, agreement, reveals, and shares of others'."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedllm.encryption.masks import SiteMasks
from fedllm.encryption.pairs import MaskKey, PairSecrets
from fedllm.encryption.plan import EncryptionPlan
from fedllm.federation.protocol.cohorts import Neighbourhood
from fedllm.federation.protocol.masks import (
    check_settled,
    escrow_key,
    pair_secrets,
    reveal_purpose,
    site_masks,
)
from fedllm.federation.protocol.messages import (
    Recover,
    Recovered,
    RecoveredHeader,
    Settle,
    Settled,
    SettledHeader,
    Unmask,
    Unmasked,
    UnmaskedHeader,
)
from fedllm.federation.protocol.neighbours import Around, drawn_by
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import hex_bytes, require_own_key
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.orders import OrderReader, read_plan
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.identity.sealing import seal_for


class SiteSums:
    """One site's part in opening sums; ``docs/protocol.md`` has the order of the checks.

    Parameters
    ----------
    identity : Identity
        The site's keys.
    roster : Roster
        The federation's parties, pinned.
    orders : OrderReader
        Reads statements and neighbourhoods.
    account : callable
        Opens the site's account, in whose ledger it is written what was settled.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        orders: OrderReader,
        account: Callable[[], SiteAccount],
    ) -> None:
        self._identity = identity
        self._roster = roster
        self._orders = orders
        self._account = account
        self._key: tuple[object, MaskKey] | None = None
        self._pairs: tuple[object, PairSecrets] | None = None

    def masks(
        self, statement: RoundStatement, around: Around, plan: EncryptionPlan, recover: bool
    ) -> SiteMasks:
        """Return the site's masks of an attempt, made anew; see `protocol.masks.site_masks`."""
        about = (self._identity, self._account().ledger, statement, around, plan)
        if self._pairs is None or self._pairs[0] != about[1:]:
            # What is derived for each other site is the same for the whole attempt.
            self._pairs = about[1:], pair_secrets(*about, self._mask_key(statement.run))
        return site_masks(*about, recover, self._pairs[1])

    def _mask_key(self, run: str) -> MaskKey:
        """Return the site's mask key of a run: agreeing with each other site costs most."""
        of_run = (run, self._account().ledger)
        if self._key is None or self._key[0] != of_run:
            self._key = of_run, MaskKey(self._identity.mask_key(*of_run))
        return self._key[1]

    def settle(self, request: Settle) -> Settled:
        """Sign who is in the sum, once, and leave what this site would reveal for it.

        Raises
        ------
        FedllmError
            If the site does not let this sum be opened, or has settled on another.
        """
        statement, masks, words = self._settled(request)
        account = self._account()
        account.settle(statement, words, len(request.header.survivors))
        key = escrow_key(self._identity, account.ledger, statement, words)
        left = masks.escrow(key, lambda reveal: self._sealed(statement, reveal))
        signature = self._identity.sign(words).hex()
        header = SettledHeader(site=self._identity.name, signature=signature)
        return Settled(header, left.to_bytes() if left else b"")

    def unmask(self, request: Unmask) -> Unmasked:
        """Reveal what takes this site's masks off.

        Raises
        ------
        FedllmError
            If it has not settled on this sum, or not all have that it asks.
        """
        statement, masks, statements = self._agreed(request)
        sealed = self._sealed(statement, masks.reveal(statements).to_bytes())
        return Unmasked(UnmaskedHeader(site=self._identity.name, reveal=sealed.hex()))

    def recover(self, request: Recover) -> Recovered:
        """Give this site's shares of what others left.

        Raises
        ------
        FedllmError
            If this site would not reveal for this sum, or one of the others would not.
        """
        statement, masks, statements = self._agreed(request)
        around = self._around(statement, request.header.around)
        shares = []
        for owner in request.header.owners:
            drawn = drawn_by(statement, around, owner)
            asked = {*drawn, owner} if drawn else set(statements)
            of_asked = {name: statements[name] for name in asked & set(statements)}
            shares.append(masks.share(owner, drawn, of_asked).hex())
        return Recovered(RecoveredHeader(site=self._identity.name, shares=tuple(shares)))

    def _agreed(
        self, request: Unmask | Recover
    ) -> tuple[RoundStatement, SiteMasks, Mapping[str, bytes]]:
        """Return the masks of a sum that this site settled on, and who has signed for it."""
        header = request.header
        statement, masks, words = self._settled(request)
        self._account().require_settled(statement, words)
        signed = check_settled(masks.scope, header.survivors, header.signatures, self._roster)
        return statement, masks, signed

    def _settled(
        self, request: Settle | Unmask | Recover
    ) -> tuple[RoundStatement, SiteMasks, bytes]:
        """Return the masks of a sum, and what this site signs for it, if it may be opened."""
        statement = self._orders.asked(request.header)
        around = self._around(statement, request.header.around)
        masks = self.masks(statement, around, read_plan(request.plan, statement), True)
        return statement, masks, masks.statement(request.header.survivors)

    def _around(self, statement: RoundStatement, told: Neighbourhood) -> Around:
        ledger = self._account().ledger
        around = self._orders.neighbourhoods.read(told, statement, ledger)
        require_own_key(around.own, self._identity, ledger, statement.run)
        return around

    def _sealed(self, statement: RoundStatement, reveal: bytes) -> bytes:
        key = hex_bytes(statement.reveal_key)
        return seal_for(key, reveal, reveal_purpose(statement, self._identity.name))
