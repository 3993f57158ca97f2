"""A federation in memory: the sites, the key authority and the coordinator of production.

Nothing is replaced but the network. The self-test holds all keys, so it can look where in a
real federation nobody can.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.audit.selftest.material import (
    Vector,
)
from fedllm.config import RunConfig
from fedllm.encryption.ciphertext_format import new_context
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.encryption.update import opened_levels
from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import (
    RoundOutcome,
    run_round,
    statement_of,
    with_order,
)
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.federation.protocol.envelopes import verified_update
from fedllm.federation.protocol.evaluating import SumShape, sum_shape
from fedllm.federation.protocol.masks import site_masks
from fedllm.federation.protocol.messages import (
    Draw,
    Join,
    JoinedHeader,
    JoinHeader,
    OpenRound,
    OpenRoundHeader,
    Ready,
    Recover,
    Settle,
    Train,
    TrainHeader,
    Unmask,
    Wire,
)
from fedllm.federation.protocol.neighbours import Neighbourhoods, read_neighbourhood
from fedllm.federation.protocol.round_statement import Purpose, RoundStatement, round_statement
from fedllm.federation.protocol.statements import make_member, parse_statement, read_statement
from fedllm.federation.protocol.terms import Terms
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.ledger.audit import read_state
from fedllm.privacy.ledger.charges import Reservation
from fedllm.privacy.ledger.ledger import Ledger

RUN = "selftest-run"
AUTHORITY = "authority"


def site_files(folder: Path, name: str) -> SiteFiles:
    """Return where a site of a made-up federation keeps its files."""
    return SiteFiles(folder / f"{name}.sqlite", folder / f"{name}.json", folder / f"{name}.log")


@dataclass
class Federation:
    """Sites, authority and coordinator of one run; answers to the `Sites` protocol.

    Attributes
    ----------
    updates : list of bytes
        Every signed update that a site sent, as it went over the wire.
    announced : list of float
        Noise multipliers of the rounds so far, with distributed noise.
    sizes : dict of str to int
        What each site has to announce of its size in this run.
    heard : callable
        Hears of every answer of a site: what it was asked, its name, and the answer.
    keys : dict of str to object
        Secret keys (TenSEAL contexts) of the orders that the self-test wrote, by purpose.
    silent : (str, str), optional
        What was asked, and of whom, in an answer that never arrives.
    """

    config: RunConfig
    folder: Path
    identities: dict[str, Identity]
    roster: Roster
    sites: dict[str, Site]
    authority: Authority
    terms: Terms
    start: NDArray[np.float32]
    sizes: dict[str, int]
    updates: list[bytes] = field(default_factory=list)
    announced: list[float] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)
    heard: Callable[[str, str, Any], None] = lambda kind, name, answer: None
    silent: tuple[str, str] | None = None

    def admit(self, node: str, name: str) -> None:
        """Nodes have the names of sites already."""

    def changed(self) -> bool:
        """Tell whether sites came or went: none do."""
        return False

    def join(self, request: Wire) -> Iterator[tuple[str, Any]]:
        """Ask every site whether it takes part."""
        yield from self._ask("join", lambda name: request, tuple(self.sites))

    def draw(self, request: Draw, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Let sites draw their neighbours."""
        yield from self._ask("draw", lambda name: request, names)

    def train(
        self, order: Callable[[str], Train], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        """Order sites to train."""
        for name, answer in self._ask("train", order, names):
            self.updates.append(answer.update)
            yield name, answer

    def ready(self, request: Ready, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Ask sites whether they are still there."""
        yield from self._ask("ready", lambda name: request, names)

    def settle(
        self, question: Callable[[str], Settle], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        """Ask sites to agree on the survivors."""
        yield from self._ask("settle", question, names)

    def unmask(
        self, question: Callable[[str], Unmask], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        """Ask sites to take their masks off."""
        yield from self._ask("unmask", question, names)

    def recover(
        self, question: Callable[[str], Recover], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        """Ask sites for their shares of what others left."""
        yield from self._ask("recover", question, names)

    def _ask(
        self, kind: str, request: Callable[[str], Wire], names: tuple[str, ...]
    ) -> Iterator[tuple[str, Any]]:
        for name in names:
            answer = getattr(self.sites[name], kind)(request(name))
            self.heard(kind, name, answer)
            if self.silent != (kind, name):
                yield name, answer

    def round(self, number: int, purpose: Purpose = "update") -> RoundOutcome:
        """Carry one round through, from the same adapter each time."""
        cohort = gather_cohort(self, self.terms, number, self.roster, lambda text: None)
        noise = None
        if purpose == "update":
            noise = mechanism_of(self.config).announced_noise(number, self.announced)
            self.announced += [noise] if noise is not None else []
        statement = statement_of(self.terms, cohort, number, number, noise, purpose)
        return run_round(
            self,
            self.authority,
            self.terms,
            self.roster,
            statement,
            cohort,
            self.start,
            lambda *_: None,
        )

    def order(
        self,
        number: int,
        context: Any = None,
        attempt: int | None = None,
        noise: float | None = None,
        purpose: Purpose = "update",
    ) -> tuple[Train, Any]:
        """Write the order of a round to which the self-test itself holds the key; see `addressed`.

        Parameters
        ----------
        number : int
            The round.
        context : object, optional
            The key; the last one of this purpose when left out.
        attempt : int, optional
            The round's number when left out.
        noise : float, optional
            What the coordinator announces.
        purpose : {"update", "evaluation"}
            Of the round.

        Returns
        -------
        Train
            Signed with the key authority's key.
        object
            TenSEAL context with the secret key, for `SecretRoundKey`.
        """
        plan = self.plan_of(purpose)
        context = context or self.keys.get(purpose) or new_context(plan)
        self.keys[purpose] = context
        public = SecretRoundKey(plan, context).public_context()
        key = PublicRoundKey.from_bytes(plan, public).fingerprint
        proposal = self._proposal(number, attempt or number, noise, purpose)
        text = proposal.model_copy(update={"key": key}).model_dump_json()
        signature = self.identities[AUTHORITY].sign(round_statement(text)).hex()
        return self._order(text, signature, public, purpose), context

    def opened_order(self, number: int) -> Train:
        """Let the key authority open a round, and write its order."""
        proposal = self._proposal(number, number, None, "update")
        asked = OpenRoundHeader(statement=proposal.model_dump_json(), members=self._members())
        request = OpenRound(asked, self.plan.to_bytes())
        opened = self.authority.open_round(request)
        header = opened.header
        return self._order(header.statement, header.signature, opened.public_key, "update")

    def _proposal(
        self, number: int, attempt: int, noise: float | None, purpose: Purpose
    ) -> RoundStatement:
        statement = statement_of(self.terms, self._members(), number, attempt, noise, purpose)
        statement = with_order(statement, self.terms, self.start)
        return statement.model_copy(update={"plan": self.plan_of(purpose).fingerprint()})

    def _members(self) -> tuple[CohortMember, ...]:
        return tuple(
            make_member(
                self.identities[name], self.ledger(name).id, self.terms.run, self.sizes[name]
            )
            for name in self.sites
        )

    def _order(self, statement: str, signature: str, public_key: bytes, purpose: Purpose) -> Train:
        header = TrainHeader(
            statement=statement,
            signature=signature,
            config=self.terms.config_text,
            labels=self.terms.labels,
            bounds=self.shape(purpose).bounds,
            model=self.terms.model,
            around=self._around(statement).of(next(iter(self.sites))),
        )
        return Train(header, self.plan_of(purpose).to_bytes(), public_key, self.start.tobytes())

    def _around(self, statement: str) -> Neighbourhoods:
        return Neighbourhoods(parse_statement(statement), self._members(), {})

    def addressed(self, order: Train, name: str) -> Train:
        """Return an order, which is the first site's, as another site is given it."""
        around = self._around(order.header.statement).of(name)
        return replace(order, header=order.header.model_copy(update={"around": around}))

    def sent(
        self,
        name: str,
        number: int,
        attempt: int | None = None,
        noise: float | None = None,
        purpose: Purpose = "update",
    ) -> Vector:
        """Let one site do a round, take its masks off, and open what it sends, (P,).

        Raises
        ------
        FedllmError
            If the site refuses.
        """
        order, context = self.order(number, None, attempt, noise, purpose)
        plan = self.plan_of(purpose)
        payload = self.payload(name, order)
        slots = SecretRoundKey(plan, context).decrypt_sum(payload)
        if plan.masked:
            modulus = np.uint64(plan.plain_modulus)
            slots = (slots + (modulus - self.mask(name, order))) % modulus
        statement = read_statement(order.header.statement, order.header.signature, self.roster)
        levels = opened_levels(slots, payload, plan, 1, statement.digest)
        return self.quantiser(purpose).dequantise_sum(levels, 1)

    def mask(self, name: str, order: Train, own: bool = True) -> NDArray[np.uint64]:
        """Return the mask that is on a site's update in a masked round, (S,).

        ``own`` tells whether the site's own part, where it has one, is in it.
        """
        statement = read_statement(order.header.statement, order.header.signature, self.roster)
        recover = own and self.config.encryption.recover_dropouts
        plan = self.plan_of(statement.purpose)
        identity, ledger = self.identities[name], self.ledger(name).id
        found = self._around(order.header.statement).of(name)
        around = read_neighbourhood(found, statement, identity, ledger, self.roster)
        return site_masks(identity, ledger, statement, around, plan, recover).mask_for_update()

    def joined(self, name: str) -> JoinedHeader:
        """Ask one site whether it takes part in the run."""
        terms = self.terms
        header = JoinHeader(
            run=terms.run,
            round=1,
            config=terms.config_text,
            labels=terms.labels,
            model=terms.model,
            adapter_length=terms.adapter_length,
        )
        return self.sites[name].join(Join(header)).header

    def refused(
        self,
        name: str,
        number: int,
        attempt: int | None = None,
        noise: float | None = None,
        purpose: Purpose = "update",
    ) -> bool:
        """Tell whether a site sends nothing in a round."""
        order, _ = self.order(number, None, attempt, noise, purpose)
        return not self.sites[name].train(self.addressed(order, name)).update

    def quantiser(self, purpose: Purpose = "update") -> Quantiser:
        """Return what turns levels into values."""
        shape = self.shape(purpose)
        return Quantiser(shape.bounds, shape.bits)

    def charges(self, name: str) -> list[Reservation]:
        """Return everything that a site's ledger was charged, in order."""
        return list(read_state(self.ledger_file(name)).reservations.values())

    def payload(self, name: str, order: Train) -> bytes:
        """Let one site train, and take its update out of the envelope.

        Raises
        ------
        FedllmError
            If the site refuses, or the envelope is not its own.
        """
        answer = self.sites[name].train(self.addressed(order, name))
        if answer.header.refusal is not None:
            raise answer.header.refusal.to_error(name)
        return self.verified(answer.update, name, order)

    def verified(self, update: bytes, name: str, order: Train) -> bytes:
        """Open an envelope as the coordinator does.

        Raises
        ------
        PeerError
            If it is not of this site and round.
        """
        statement = read_statement(order.header.statement, order.header.signature, self.roster)
        plan = self.plan_of(statement.purpose)
        return verified_update(update, statement, plan, name, self.roster)

    @property
    def plan(self) -> EncryptionPlan:
        """The encryption plan of every round of training."""
        return self.plan_of("update")

    def shape(self, purpose: Purpose) -> SumShape:
        """Return the shape of what sites send in a round of a purpose."""
        return sum_shape(self.config, purpose, self.terms.bounds, self.terms.labels)

    def plan_of(self, purpose: Purpose) -> EncryptionPlan:
        """Return the encryption plan of every round of a purpose."""
        section, shape = self.config.encryption, self.shape(purpose)
        return make_plan(section.scheme, shape.bits, len(self.sites), shape.length, section.masked)

    def ledger_file(self, name: str) -> Path:
        """Return where a site keeps its ledger."""
        return self.files(name).ledger

    def files(self, name: str) -> SiteFiles:
        """Return where a site keeps what it must not lose."""
        return site_files(self.folder, name)

    def ledger(self, name: str) -> Ledger:
        """Open a site's ledger."""
        return Ledger.open(self.ledger_file(name), name, self.identities[name])
