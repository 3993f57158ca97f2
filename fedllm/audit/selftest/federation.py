"""A federation in memory: the sites, the key authority and the coordinator of production.

Nothing is replaced but the network. The self-test holds all keys, so it can look where in a
real federation nobody can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.audit.selftest.material import (
    LABELS,
    RECORDS,
    SITES,
    Material,
    Vector,
    dataset_of,
    gradients_of,
    made_up,
    start_of,
)
from fedllm.config import AllowSection, BudgetSection, RunConfig, SitePolicy
from fedllm.data.records import Record
from fedllm.encryption.ciphertext_format import new_context
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import (
    RoundOutcome,
    run_round,
    statement_of,
)
from fedllm.federation.protocol.envelopes import verified_update
from fedllm.federation.protocol.messages import (
    OpenRound,
    OpenRoundHeader,
    RoundStatement,
    Train,
    TrainHeader,
    Wire,
    round_statement,
)
from fedllm.federation.protocol.statements import read_statement
from fedllm.federation.protocol.terms import Terms, make_terms
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.mechanisms import mechanism_of
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.tasks.cache import ModelCache

RUN = "selftest-run"
_AUTHORITY = "authority"


@dataclass
class Federation:
    """Sites, authority and coordinator of one run; answers to the `Sites` protocol.

    Attributes
    ----------
    updates : list of bytes
        Every signed update that a site sent, as it went over the wire.
    announced : list of float
        Noise multipliers of the rounds so far, with distributed noise.
    """

    config: RunConfig
    folder: Path
    identities: dict[str, Identity]
    roster: Roster
    sites: dict[str, Site]
    authority: Authority
    terms: Terms
    start: NDArray[np.float32]
    updates: list[bytes] = field(default_factory=list)
    announced: list[float] = field(default_factory=list)

    def admit(self, node: str, name: str) -> None:
        """Nodes have the names of sites already."""

    def changed(self) -> bool:
        """Tell whether sites came or went: none do."""
        return False

    def join(self, request: Wire) -> Iterator[tuple[str, Any]]:
        """Ask every site whether it takes part."""
        yield from self._ask("join", request, tuple(self.sites))

    def train(self, request: Wire, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Order sites to train."""
        for name, answer in self._ask("train", request, names):
            self.updates.append(answer.update)
            yield name, answer

    def settle(self, request: Wire, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Ask sites to agree on the survivors."""
        yield from self._ask("settle", request, names)

    def unmask(self, request: Wire, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        """Ask sites to take their masks off."""
        yield from self._ask("unmask", request, names)

    def _ask(self, kind: str, request: Wire, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name in names:
            yield name, getattr(self.sites[name], kind)(request)

    def round(self, number: int) -> RoundOutcome:
        """Carry one round through, from the same adapter each time."""
        cohort = gather_cohort(self, self.terms, number, self.roster, lambda text: None)
        noise = mechanism_of(self.config).announced_noise(number, self.announced)
        self.announced += [noise] if noise is not None else []
        statement = statement_of(self.terms, cohort, number, number, noise)
        return run_round(
            self,
            self.authority,
            self.terms,
            self.roster,
            statement,
            self.start,
            lambda *_: None,
        )

    def order(self, number: int, context: Any = None) -> tuple[Train, Any]:
        """Write the order of a round to which the self-test itself holds the key.

        Returns
        -------
        Train
            Signed with the key authority's key.
        object
            TenSEAL context with the secret key, for `SecretRoundKey`.
        """
        plan = self.plan
        context = context or new_context(plan)
        public = SecretRoundKey(plan, context).public_context()
        key = PublicRoundKey.from_bytes(plan, public).fingerprint
        text = self._proposal(number).model_copy(update={"key": key}).model_dump_json()
        signature = self.identities[_AUTHORITY].sign(round_statement(text)).hex()
        return self._order(text, signature, public), context

    def opened_order(self, number: int) -> Train:
        """Let the key authority open a round, and write its order."""
        request = OpenRound(
            OpenRoundHeader(statement=self._proposal(number).model_dump_json()),
            self.plan.to_bytes(),
        )
        opened = self.authority.open_round(request)
        return self._order(opened.header.statement, opened.header.signature, opened.public_key)

    def _proposal(self, number: int) -> RoundStatement:
        cohort = gather_cohort(self, self.terms, number, self.roster, lambda text: None)
        statement = statement_of(self.terms, cohort, number, number, None)
        return statement.model_copy(update={"plan": self.plan.fingerprint()})

    def _order(self, statement: str, signature: str, public_key: bytes) -> Train:
        header = TrainHeader(
            statement=statement,
            signature=signature,
            config=self.terms.config_text,
            labels=self.terms.labels,
            bounds=self.terms.bounds,
            model=self.terms.model,
        )
        return Train(header, self.plan.to_bytes(), public_key, self.start.tobytes())

    def payload(self, name: str, order: Train) -> bytes:
        """Let one site train, and take its update out of the envelope.

        Raises
        ------
        FedllmError
            If the site refuses, or the envelope is not its own.
        """
        answer = self.sites[name].train(order)
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
        return verified_update(update, statement, self.plan, name, self.roster)

    @property
    def plan(self) -> EncryptionPlan:
        """The encryption plan of every round."""
        section = self.config.encryption
        return make_plan(
            section.scheme, section.bits, len(self.sites), self.terms.update_length, section.masked
        )

    def ledger_file(self, name: str) -> Path:
        """Return where a site keeps its ledger."""
        return self.folder / f"{name}.sqlite"

    def ledger(self, name: str) -> Ledger:
        """Open a site's ledger."""
        return Ledger.open(self.ledger_file(name), name, self.identities[name])


def build(
    material: Material,
    config: RunConfig,
    identities: dict[str, Identity] | None = None,
    budget: BudgetSection | None = None,
) -> Federation:
    """Make a federation with ledgers of its own, and with new keys unless some are given."""
    folder = material.new_folder()
    names = (*SITES, _AUTHORITY)
    identities = identities or {name: Identity.generate(name) for name in names}
    keys = {name: identities[name].public_bytes() for name in SITES}
    roster = Roster(identities[_AUTHORITY].public_bytes(), keys)
    models = ModelCache()
    policy = SitePolicy(
        budget=budget or BudgetSection(epsilon=10 * (config.privacy.epsilon or 1.0)),
        allow=AllowSection(
            masks="required" if config.encryption.masked else "optional",
            non_private=not config.private,
        ),
    )

    def site(name: str) -> Site:
        return Site(
            identity=identities[name],
            roster=roster,
            policy=policy,
            files=SiteFiles(
                folder / f"{name}.sqlite", folder / f"{name}.json", folder / f"{name}.log"
            ),
            model_path=config.model.path,
            records=lambda task: records_of(name),
            models=models,
            full_errors=True,
        )

    model = models.get(config, LABELS)
    return Federation(
        config=config,
        folder=folder,
        identities=identities,
        roster=roster,
        sites={name: site(name) for name in SITES},
        authority=Authority(
            identities[_AUTHORITY], roster, config.rounds.min_sites, full_errors=True
        ),
        terms=make_terms(config, model, RUN),
        start=start_of(model),
    )


def records_of(name: str) -> list[Record]:
    """Return one site's made-up records."""
    return made_up(RECORDS, name, lambda i: None)


def gradients_of_sites(material: Material, config: RunConfig) -> Vector:
    """Return the gradients of all sites' records, (sites * records, P), in the sites' order."""
    model = material.model(config)
    return np.concatenate(
        [gradients_of(model, dataset_of(records_of(name), config, model)) for name in SITES]
    )
