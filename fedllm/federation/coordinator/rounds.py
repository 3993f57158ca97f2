"""The coordinator's side of a round: order, sum, corrections for the dropped, opening."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey
from fedllm.encryption.update import clear_levels
from fedllm.errors import PeerError
from fedllm.federation.coordinator.answers import (
    UpdateCollector,
    dropped_out,
    too_few,
)
from fedllm.federation.coordinator.parties import KeyAuthority, Sites
from fedllm.federation.coordinator.unmasking import Attempt, Proofs
from fedllm.federation.protocol.cohorts import CohortMember, cohort_digest
from fedllm.federation.protocol.evaluating import SumShape, sum_shape
from fedllm.federation.protocol.graphs import planned_graph
from fedllm.federation.protocol.messages import (
    OpenRound,
    OpenRoundHeader,
    OpenSum,
    OpenSumHeader,
    RoundOpened,
    Train,
    TrainHeader,
    order_digests,
)
from fedllm.federation.protocol.round_statement import Purpose, RoundStatement
from fedllm.federation.protocol.statements import read_statement, require
from fedllm.federation.protocol.terms import Terms
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.entries import Head


@dataclass
class RoundOutcome:
    """What a finished round gave.

    Attributes
    ----------
    mean : float64 array (P,)
        Mean of the survivors' vectors: of their updates, in training.
    survivors : tuple of str
        Sites in the sum.
    dropped : dict of str to str
        Sites of the cohort that are not, and why.
    recovered : dict of str to str
        Survivors that went away before they took their masks off, and why: others did.
    bytes_up, bytes_down : int
        Bytes from and to the sites.
    heads : dict of str to Head
        The survivors' ledgers after this round, each signed by its site.
    seconds : dict of str to float
        Wall time of "aggregate" and "decrypt".
    """

    mean: NDArray[np.float64]
    survivors: tuple[str, ...]
    dropped: dict[str, str]
    recovered: dict[str, str]
    bytes_up: int
    bytes_down: int
    heads: dict[str, Head] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def run_round(
    sites: Sites,
    authority: KeyAuthority,
    terms: Terms,
    roster: Roster,
    statement: RoundStatement,
    members: Sequence[CohortMember],
    adapter: NDArray[np.float32],
    heard: Callable[[str, int, int], None],
    each: Callable[[NDArray[np.float64]], None] | None = None,
) -> RoundOutcome:
    """Carry one round through: key, training, sum, corrections for the dropped, opening.

    Parameters
    ----------
    statement : RoundStatement
        The round as proposed, see `statement_of`; its purpose says what is summed.
    members : sequence of CohortMember
        The entries of its cohort.
    adapter : float32 array (P,)
        Where the sites start, or what they evaluate.
    heard : callable
        Called with a site's name, the number of answers so far, and the size of the cohort.
    each : callable, optional
        In a round without encryption, called with each update (U,) as it arrives.

    Raises
    ------
    FedllmError
        If too few sites finish, or the authority refuses or misbehaves.
    """
    config = terms.config
    shape = _shape(terms, statement)
    plan = make_plan(
        config.encryption.scheme,
        shape.bits,
        len(statement.cohort),
        shape.length,
        config.encryption.masked,
    )
    ordered = with_order(statement, terms, adapter)
    opened, signed = _open_round(authority, ordered, members, plan, roster)
    public = PublicRoundKey.from_bytes(plan, opened.public_key)
    require(public.fingerprint == signed.key, "the round's public key is not the signed one")
    attempt = Attempt(sites, roster, signed, _about(opened), plan)
    failures = attempt.draw(members)
    started_from = _wire_bytes(adapter)

    def order(name: str) -> Train:
        header = TrainHeader(
            **attempt.about,
            config=terms.config_text,
            labels=terms.labels,
            bounds=shape.bounds,
            model=terms.model,
            around=attempt.around.of(name),
        )
        return Train(header, plan.to_bytes(), opened.public_key, started_from)

    quantiser = Quantiser(shape.bounds, plan.bits)

    def look(update: bytes) -> None:
        # One that is not what a site of this software sends is found out with the sum.
        with suppress(PeerError):
            if each is not None:
                each(quantiser.dequantise_sum(clear_levels(update, plan), 1))

    ready = tuple(name for name in signed.cohort if name not in failures)
    recovering = plan.masked and config.encryption.recover_dropouts
    collector = UpdateCollector(
        EncryptedSum(plan, public),
        signed,
        failures,
        roster,
        heard,
        recovering,
        look if plan.scheme == "none" else None,
    )
    collector.collect(sites.train(order, ready))
    header, blobs = order(ready[0]).to_wire()
    down = (len(header) + sum(map(len, blobs.values()))) * len(ready)
    if recovering and len(collector.survivors) >= signed.min_sites:
        collector.leave_out(attempt.gone(tuple(collector.survivors)))
    survivors = tuple(sorted(collector.survivors))
    if len(survivors) < signed.min_sites:
        raise too_few(len(survivors), signed.min_sites, list(collector.failures.values()))
    proofs = Proofs()
    if recovering:
        proofs = attempt.unmask(survivors)
    elif plan.masked and collector.failures:
        raise dropped_out(collector.failures)
    started = time.perf_counter()
    levels = _open_sum(authority, attempt.about, collector.total, survivors, proofs)
    decrypt = time.perf_counter() - started
    total = quantiser.dequantise_sum(levels, len(survivors))
    return RoundOutcome(
        mean=total / len(survivors),
        survivors=survivors,
        dropped={name: str(error.message) for name, error in collector.failures.items()},
        recovered=proofs.recovered,
        bytes_up=collector.bytes_up,
        bytes_down=down,
        heads=collector.heads,
        seconds={"aggregate": collector.seconds, "decrypt": decrypt},
    )


def _about(opened: RoundOpened) -> dict[str, str]:
    return {"statement": opened.header.statement, "signature": opened.header.signature}


def _open_round(
    authority: KeyAuthority,
    statement: RoundStatement,
    members: Sequence[CohortMember],
    plan: EncryptionPlan,
    roster: Roster,
) -> tuple[RoundOpened, RoundStatement]:
    proposal = statement.model_copy(update={"plan": plan.fingerprint()})
    header = OpenRoundHeader(statement=proposal.model_dump_json(), members=tuple(members))
    request = OpenRound(header, plan.to_bytes())
    opened = authority.open_round(request)
    if opened.header.refusal is not None:
        raise opened.header.refusal.to_error("the key authority")
    signed = read_statement(opened.header.statement, opened.header.signature, roster)
    require(
        signed.model_copy(update={"key": "", "reveal_key": ""}) == proposal,
        "the key authority signed another round than was asked for",
    )
    return opened, signed


def _open_sum(
    authority: KeyAuthority,
    about: dict[str, str],
    total: EncryptedSum,
    survivors: tuple[str, ...],
    proofs: Proofs,
) -> NDArray[np.uint64]:
    header = OpenSumHeader(
        **about,
        survivors=survivors,
        signatures=proofs.signatures,
        reveals=proofs.reveals,
    )
    opened = authority.open_sum(OpenSum(header, total.to_bytes()))
    if opened.header.refusal is not None:
        raise opened.header.refusal.to_error("the key authority")
    require(opened.header.count == len(survivors), "the key authority opened another sum")
    require(
        len(opened.levels) == 8 * total.plan.length, "the opened sum does not have the right length"
    )
    return np.frombuffer(opened.levels, dtype="<u8").astype(np.uint64)


def statement_of(
    terms: Terms,
    cohort: tuple[CohortMember, ...],
    number: int,
    attempt: int,
    noise_multiplier: float | None,
    purpose: Purpose = "update",
) -> RoundStatement:
    """Return the proposal of one round, before order, plan and key are known.

    ``cohort`` are the entries of its sites, by name.
    """
    graph = planned_graph(terms.config, len(cohort))
    return RoundStatement(
        run=terms.run,
        round=number,
        attempt=attempt,
        purpose=purpose,
        rounds=terms.config.rounds.count,
        cohort=tuple(member.name for member in cohort),
        members=cohort_digest(cohort),
        neighbours=graph.neighbours,
        missing=graph.missing,
        colluders=graph.colluders,
        min_sites=terms.config.rounds.min_sites,
        plan="",
        key="",
        reveal_key="",
        config="",
        labels="",
        bounds="",
        model="",
        adapter="",
        noise_multiplier=noise_multiplier,
    )


def with_order(
    statement: RoundStatement, terms: Terms, adapter: NDArray[np.float32]
) -> RoundStatement:
    """Return a proposal that names what the sites are sent; ``adapter`` is float32 (P,)."""
    bounds = _shape(terms, statement).bounds
    said = order_digests(terms.config_text, terms.labels, bounds, terms.model, _wire_bytes(adapter))
    return statement.model_copy(update=said.model_dump())


def _shape(terms: Terms, statement: RoundStatement) -> SumShape:
    bounds = terms.bounds_of(statement.round)
    return sum_shape(terms.config, statement.purpose, bounds, terms.labels)


def _wire_bytes(adapter: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(adapter, dtype="<f4").tobytes()
