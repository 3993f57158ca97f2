"""What a coalition can have signed, and everything that its runs share."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attacks.coalitions.recording import UNITS, Recorder
from attacks.coalitions.telling import arounds_of

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.encryption.plan import make_plan
from fedllm.encryption.reveals import Reveal
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.encryption.survivors import survivor_statement
from fedllm.federation.authority.authority import Authority
from fedllm.federation.coordinator.rounds import statement_of
from fedllm.federation.protocol.cohorts import CohortMember, Neighbourhood
from fedllm.federation.protocol.evaluating import sum_shape
from fedllm.federation.protocol.masks import mask_scope, reveal_purpose, site_masks
from fedllm.federation.protocol.messages import OpenRound, OpenRoundHeader, Train, TrainHeader
from fedllm.federation.protocol.neighbours import Around
from fedllm.federation.protocol.round_statement import RoundStatement, round_statement
from fedllm.federation.protocol.statements import make_member, parse_statement
from fedllm.federation.site.files import SiteFiles
from fedllm.identity.keys import Identity
from fedllm.identity.sealing import SealingKey
from fedllm.privacy.ledger.ledger import Ledger


@dataclass(frozen=True)
class Signed:
    """A statement of the search, and what goes to the sites with it.

    Attributes
    ----------
    order : Train
        As it was signed, with nobody's neighbourhood.
    members : tuple of CohortMember
        The entries of its cohort.
    arounds : mapping of str to sequence of Neighbourhood
        What each honest site may be told of the cohort; first what is right.
    null : bool
        Whether nothing is left of an update that follows it.
    known : tuple of bytes
        Seeds that the colluding sites share with honest ones.
    """

    order: Train
    statement: RoundStatement
    members: tuple[CohortMember, ...]
    arounds: Mapping[str, Sequence[Neighbourhood]]
    null: bool
    known: tuple[bytes, ...]

    @property
    def about(self) -> dict[str, str]:
        """The statement and its signature, as every message has them."""
        header = self.order.header
        return {"statement": header.statement, "signature": header.signature}

    def ordered(self, around: Neighbourhood, order: Train | None = None) -> Train:
        """Return an order, this one when left out, for the site that has this neighbourhood."""
        asked = order or self.order
        return replace(asked, header=asked.header.model_copy(update={"around": around}))


class Stage:
    """What every run shares: keys, roster, terms, plan and round keys.

    Parameters
    ----------
    federation : Federation
        Keys, roster and terms are used; its sites are not.
    colluders : sequence of str
        Sites in league with the coordinator.
    authority : bool
        Whether the key authority is, too.
    expected : int, optional
        How many colluders the sites expect; as many as there are when left out.
    """

    def __init__(
        self,
        federation: Any,
        folder: Path,
        recorder: Recorder,
        colluders: Sequence[str] = (),
        authority: bool = False,
        expected: int | None = None,
    ) -> None:
        self.federation, self.recorder, self.authority = federation, recorder, authority
        self.colluders, self.names = tuple(colluders), tuple(sorted(federation.sites))
        self.honest = tuple(name for name in self.names if name not in colluders)
        config = federation.config
        shape = sum_shape(config, "update", federation.terms.bounds, federation.terms.labels)
        scheme = config.encryption.scheme
        self.plan = make_plan(scheme, shape.bits, len(self.names), shape.length, True)
        self._secrets = [SecretRoundKey.generate(self.plan) for _ in range(2)]
        self._sealing = SealingKey()
        self._other_sealing = SealingKey()
        self._adapter = federation.model().adapter().astype("<f4").tobytes()
        # A colluding site may show another mask key in another statement.
        self._second = {
            name: Identity(name, federation.identities[name]._signing_key, os.urandom(32))
            for name in self.colluders
        }
        # In place of an honest site, but with keys of the coalition's own.
        self.posing = {name: Identity.generate(name) for name in self.honest}
        minimum = min(config.rounds.min_sites, 2)
        allow = AllowSection(
            min_cohort=minimum,
            colluders=len(self.colluders) if expected is None else expected,
            non_private=not config.private,
        )
        self.policy = SitePolicy(budget=BudgetSection(epsilon=1e6), allow=allow)
        self._folder, self.exchanges = folder, 0
        self._honest_authority = Authority(
            federation.identities["authority"],
            federation.roster,
            config.rounds.min_sites,
            make_key=lambda plan: self._secrets[0],
            full_errors=True,
        )

    # --- statements

    def signed(
        self,
        *,
        null: bool = False,
        config: str | None = None,
        adapter: bytes | None = None,
        cohort: Sequence[str] | None = None,
        other_key: bool = False,
        other_mask_keys: bool = False,
        entries: Mapping[str, CohortMember] | None = None,
        **changes: Any,
    ) -> Signed:
        """Sign a statement as an authority in league does, or have the honest one sign it.

        Raises
        ------
        FedllmError
            If the honest authority refuses.
        """
        terms, identities = self.federation.terms, dict(self.federation.identities)
        if other_mask_keys:
            identities |= self._second
        chosen = self.names if cohort is None else tuple(cohort)
        right = {name: self.member(identities[name]) for name in chosen}
        members = tuple((right | dict(entries or {})).values())
        public = self._secrets[int(other_key)].public_context()
        header = TrainHeader(
            statement="",
            signature="",
            config=terms.config_text if config is None else config,
            labels=terms.labels,
            bounds=terms.bounds,
            model=terms.model,
            around=Neighbourhood(place=0, near=()),
        )
        order = Train(header, self.plan.to_bytes(), public, adapter or self._adapter)
        said = statement_of(terms, members, 1, 1, None).model_copy(
            update={"plan": self.plan.fingerprint(), **order.digests().model_dump(), **changes}
        )
        text, signature = self._sign(said, members, public)
        order = replace(
            order, header=header.model_copy(update={"statement": text, "signature": signature})
        )
        signed = parse_statement(text)
        return Signed(
            order, signed, members, self.arounds(signed, members), null, self._known(signed)
        )

    def arounds(
        self, statement: RoundStatement, members: Sequence[CohortMember]
    ) -> Mapping[str, Sequence[Neighbourhood]]:
        """Return what each honest site may be told of a cohort; first what is right."""
        return arounds_of(self, statement, members)

    def member(self, identity: Identity) -> CohortMember:
        """Return an entry as a site of this name signs it, or whoever poses as that site."""
        units = UNITS if self.federation.config.private else 0
        ledger = self._ledger(identity.name)
        return make_member(identity, ledger, self.federation.terms.run, units)

    def entries(self, name: str) -> dict[str, CohortMember]:
        """Return what the coalition can show as the entry of a site, beside the right one."""
        if name in self.colluders:
            return {"second": self.member(self._second[name])}
        return {"posing": self.member(self.posing[name])}

    def _known(self, signed: RoundStatement) -> tuple[bytes, ...]:
        """Return the seeds of all pairs of which the coalition has one side."""
        identities = self.federation.identities
        theirs = [*(identities[name] for name in self.colluders), *self._second.values()]
        known = set[bytes]()
        for mine in (*theirs, *self.posing.values()):
            others = {n: self.member(identities[n]) for n in signed.cohort if n != mine.name}
            if len(others) < len(signed.cohort):
                around = Around(self.member(mine), others, tuple(others)[: signed.neighbours])
                masks = site_masks(mine, self._ledger(mine.name), signed, around, self.plan, True)
                known |= {masks._pairs.seed(name) for name in others}
        return tuple(sorted(known))

    def _sign(
        self, said: RoundStatement, members: tuple[CohortMember, ...], public: bytes
    ) -> tuple[str, str]:
        if self.authority:
            keys = {
                "key": PublicRoundKey.from_bytes(self.plan, public).fingerprint,
                "reveal_key": self._sealing.public_bytes().hex(),
            }
            text = said.model_copy(
                update={name: value for name, value in keys.items() if not getattr(said, name)}
            ).model_dump_json()
            identity = self.federation.identities["authority"]
            return text, identity.sign(round_statement(text)).hex()
        with pytest.MonkeyPatch.context() as patch:
            # What the sites reveal is read here; nobody of the coalition can.
            patch.setattr("fedllm.federation.authority.authority.SealingKey", lambda: self._sealing)
            # The one key is used for every statement, and outlives them.
            patch.setattr(SecretRoundKey, "wipe", lambda key: None)
            asked = OpenRoundHeader(statement=said.model_dump_json(), members=members)
            asked = OpenRound(asked, self.plan.to_bytes())
            header = self._honest_authority.open_round(asked).header
        if header.refusal is not None:
            raise header.refusal.to_error("the key authority")
        return header.statement, header.signature

    def other_reveal_key(self) -> str:
        """Return a second key of the authority, for which sites may be told to seal."""
        return self._other_sealing.public_bytes().hex()

    def null_adapter(self) -> bytes:
        """Return an adapter that stands for one at which nobody has gradients."""
        values = np.frombuffer(self._adapter, dtype="<f4") + np.float32(1.0)
        return bytes(values.tobytes())

    def quiet_configuration(self) -> str:
        """Return a configuration that stands for one under which nothing is learned."""
        return str(self.federation.terms.config_text).replace('name = "', 'name = "quiet-', 1)

    def files(self, name: str) -> SiteFiles:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return SiteFiles(folder / "ledger.sqlite", folder / "memory.json", folder / "log")

    def _ledger(self, name: str) -> str:
        """Return the id of a site's ledger, which is begun now if it was not."""
        return Ledger.open(self.files(name).ledger, name, self.federation.identities[name]).id

    def reveal(self, sealed: str, signed: Signed, name: str) -> Reveal:
        """Read what a site sealed for the authority."""
        other = signed.statement.reveal_key == self.other_reveal_key()
        key = self._other_sealing if other else self._sealing
        blob = key.open(bytes.fromhex(sealed), reveal_purpose(signed.statement, name))
        return Reveal.from_bytes(blob, mask_scope(signed.statement, self.plan))

    def words(self, signed: Signed, survivors: Sequence[str]) -> bytes:
        """Return what survivors sign."""
        return survivor_statement(mask_scope(signed.statement, self.plan), survivors)
