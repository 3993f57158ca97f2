"""The coordinator's side of a round: order, sum, corrections for the dropped, opening."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey
from fedllm.federation.coordinator.answers import (
    UpdateCollector,
    all_answers,
    dropped_out,
    too_few,
)
from fedllm.federation.coordinator.parties import KeyAuthority, Sites
from fedllm.federation.protocol.evaluating import sum_shape
from fedllm.federation.protocol.masks import check_settled, mask_scope
from fedllm.federation.protocol.messages import (
    CohortMember,
    OpenRound,
    OpenRoundHeader,
    OpenSum,
    OpenSumHeader,
    Purpose,
    RoundOpened,
    RoundStatement,
    Settle,
    SettleHeader,
    Train,
    TrainHeader,
    Unmask,
    UnmaskHeader,
    order_digests,
)
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
    adapter: NDArray[np.float32],
    heard: Callable[[str, int, int], None],
) -> RoundOutcome:
    """Carry one round through: key, training, sum, corrections for the dropped, opening.

    Parameters
    ----------
    statement : RoundStatement
        The round as proposed, see `statement_of`; its purpose says what is summed.
    adapter : float32 array (P,)
        Where the sites start, or what they evaluate.
    heard : callable
        Called with a site's name, the number of answers so far, and the size of the cohort.

    Raises
    ------
    FedllmError
        If too few sites finish, or the authority refuses or misbehaves.
    """
    config = terms.config
    shape = sum_shape(config, statement.purpose, terms.bounds)
    plan = make_plan(
        config.encryption.scheme,
        shape.bits,
        len(statement.cohort),
        shape.length,
        config.encryption.masked,
    )
    ordered = with_order(statement, terms, adapter)
    opened, signed = _open_round(authority, ordered, plan, roster)
    public = PublicRoundKey.from_bytes(plan, opened.public_key)
    require(public.fingerprint == signed.key, "the round's public key is not the signed one")
    order = Train(
        TrainHeader(
            statement=opened.header.statement,
            signature=opened.header.signature,
            config=terms.config_text,
            labels=terms.labels,
            bounds=shape.bounds,
            model=terms.model,
        ),
        plan.to_bytes(),
        opened.public_key,
        _wire_bytes(adapter),
    )
    collector = UpdateCollector(EncryptedSum(plan, public), signed, roster, heard)
    collector.collect(sites.train(order, signed.names))
    down = sum(map(len, order.to_wire()[1].values())) * len(signed.names)
    survivors = tuple(sorted(collector.survivors))
    if len(survivors) < signed.min_sites:
        raise too_few(len(survivors), signed.min_sites, list(collector.failures.values()))
    proofs = _Proofs()
    if plan.masked and config.encryption.recover_dropouts:
        proofs = _unmask(sites, order, signed, plan, survivors, roster)
    elif plan.masked and collector.failures:
        raise dropped_out(collector.failures)
    started = time.perf_counter()
    levels = _open_sum(authority, order, collector.total, survivors, proofs)
    decrypt = time.perf_counter() - started
    total = Quantiser(shape.bounds, plan.bits).dequantise_sum(levels, len(survivors))
    return RoundOutcome(
        mean=total / len(survivors),
        survivors=survivors,
        dropped={name: str(error.message) for name, error in collector.failures.items()},
        bytes_up=collector.bytes_up,
        bytes_down=down,
        heads=collector.heads,
        seconds={"aggregate": collector.seconds, "decrypt": decrypt},
    )


@dataclass(frozen=True)
class _Proofs:
    """What the survivors gave to open their sum, in their order."""

    signatures: tuple[str, ...] = ()
    reveals: tuple[str, ...] = ()


def _unmask(
    sites: Sites,
    order: Train,
    statement: RoundStatement,
    plan: EncryptionPlan,
    survivors: tuple[str, ...],
    roster: Roster,
) -> _Proofs:
    about = {"statement": order.header.statement, "signature": order.header.signature}
    settle = Settle(SettleHeader(**about, survivors=survivors), order.plan)
    settled = all_answers(sites.settle(settle, survivors), survivors)
    signatures = tuple(settled[name].header.signature for name in survivors)
    check_settled(mask_scope(statement, plan), survivors, signatures, roster)
    unmask = Unmask(UnmaskHeader(**about, survivors=survivors, signatures=signatures), order.plan)
    unmasked = all_answers(sites.unmask(unmask, survivors), survivors)
    return _Proofs(signatures, tuple(unmasked[name].header.reveal for name in survivors))


def _open_round(
    authority: KeyAuthority, statement: RoundStatement, plan: EncryptionPlan, roster: Roster
) -> tuple[RoundOpened, RoundStatement]:
    proposal = statement.model_copy(update={"plan": plan.fingerprint()})
    request = OpenRound(OpenRoundHeader(statement=proposal.model_dump_json()), plan.to_bytes())
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
    order: Train,
    total: EncryptedSum,
    survivors: tuple[str, ...],
    proofs: _Proofs,
) -> NDArray[np.uint64]:
    header = OpenSumHeader(
        statement=order.header.statement,
        signature=order.header.signature,
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
    """Return the proposal of one round, before order, plan and key are known."""
    return RoundStatement(
        run=terms.run,
        round=number,
        attempt=attempt,
        purpose=purpose,
        rounds=terms.config.rounds.count,
        cohort=cohort,
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
    bounds = sum_shape(terms.config, statement.purpose, terms.bounds).bounds
    said = order_digests(terms.config_text, terms.labels, bounds, terms.model, _wire_bytes(adapter))
    return statement.model_copy(update=said.model_dump())


def _wire_bytes(adapter: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(adapter, dtype="<f4").tobytes()
