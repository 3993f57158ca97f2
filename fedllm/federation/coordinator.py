"""The coordinator's side of a run: ask who takes part, and carry one round through."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig, to_toml
from fedllm.encryption.plan import EncryptionPlan, make_plan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import EncryptedSum, PublicRoundKey
from fedllm.errors import FedllmError, PeerError
from fedllm.federation.evaluating import Bounds, sum_shape
from fedllm.federation.masking import check_settled, mask_scope
from fedllm.federation.messages import (
    Join,
    Joined,
    JoinHeader,
    Member,
    OpenRound,
    OpenRoundHeader,
    OpenSum,
    OpenSumHeader,
    Purpose,
    RoundOpened,
    RoundStatement,
    Settle,
    Settled,
    SettleHeader,
    SumOpened,
    Train,
    Trained,
    TrainHeader,
    Unmask,
    Unmasked,
    UnmaskHeader,
    digest,
)
from fedllm.federation.statements import check_member, read_statement, require
from fedllm.federation.updates import unseal
from fedllm.identity.roster import Roster

Answer = TypeVar("Answer", Settled, Unmasked)


class Sites(Protocol):
    """A way to ask sites and hear their answers as they come."""

    def join(self, request: Join) -> Iterator[tuple[str, Joined | FedllmError]]:
        """Ask every connected site; the first part of an answer says which node it is."""
        ...

    def train(
        self, request: Train, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Trained | FedllmError]]:
        """Order the named sites to train; yields each of them once."""
        ...

    def settle(
        self, request: Settle, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Settled | FedllmError]]:
        """Ask the named sites to agree on the survivors; yields each of them once."""
        ...

    def unmask(
        self, request: Unmask, names: tuple[str, ...]
    ) -> Iterator[tuple[str, Unmasked | FedllmError]]:
        """Ask the named sites to take their masks off; yields each of them once."""
        ...

    def admit(self, node: str, name: str) -> None:
        """Remember which site a node is."""
        ...

    def changed(self) -> bool:
        """Tell whether sites came or went since the last `join`."""
        ...


class KeyAuthority(Protocol):
    """A way to ask the key authority."""

    def open_round(self, request: OpenRound) -> RoundOpened:
        """Ask for a round's key."""
        ...

    def open_sum(self, request: OpenSum) -> SumOpened:
        """Ask for a round's sum."""
        ...


@dataclass(frozen=True)
class Terms:
    """What stays the same in all rounds of a run.

    Attributes
    ----------
    run : str
        Random identifier of the run.
    config : RunConfig
        What the coordinator asks for; sent without the places of its own data.
    labels : tuple of str
        Public labels of a classification task.
    model : str
        Fingerprint of the base model.
    length : int
        Values of the adapter, P.
    bounds : tuple of (int, float)
        For each segment of the adapter its length and the bound of one coordinate.
    """

    run: str
    config: RunConfig
    labels: tuple[str, ...]
    model: str
    length: int
    bounds: Bounds

    @property
    def config_text(self) -> str:
        """The run configuration as the sites get it, as TOML."""
        return to_toml(self.config)


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
    seconds : dict of str to float
        Wall time of "aggregate" and "decrypt".
    """

    mean: NDArray[np.float64]
    survivors: tuple[str, ...]
    dropped: dict[str, str]
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float] = field(default_factory=dict)


def gather_cohort(
    sites: Sites, terms: Terms, number: int, roster: Roster, say: Callable[[str], None]
) -> tuple[Member, ...]:
    """Ask all connected sites whether they take part from round ``number`` on.

    Returns
    -------
    tuple of Member
        Those that do, by name.

    Raises
    ------
    FedllmError
        If fewer than ``rounds.min_sites`` take part: the refusal that most sites gave.
    """
    header = JoinHeader(
        run=terms.run,
        round=number,
        config=terms.config_text,
        labels=terms.labels,
        model=terms.model,
        adapter_length=terms.length,
    )
    members: dict[str, Member] = {}
    refusals: list[FedllmError] = []
    for node, answer in sites.join(Join(header)):
        try:
            member = _joined(answer, node)
            check_member(member, terms.run, roster)
            require(member.name not in members, f"two nodes say that they are '{member.name}'")
        except FedllmError as error:
            refusals.append(error)
            say(f"does not take part: {error}")
            continue
        members[member.name] = member
        sites.admit(node, member.name)
    if len(members) < terms.config.rounds.min_sites:
        raise _too_few(len(members), terms.config.rounds.min_sites, refusals)
    return tuple(members[name] for name in sorted(members))


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
        The round as proposed, without the key; its purpose says what is summed.
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
    shape = sum_shape(config, statement.purpose, terms.length, terms.bounds)
    plan = make_plan(
        config.encryption.scheme,
        shape.bits,
        len(statement.cohort),
        shape.length,
        config.encryption.masked,
    )
    opened = _open_round(authority, statement, plan, roster)
    signed = read_statement(opened.header.statement, opened.header.signature, roster)
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
        np.ascontiguousarray(adapter, dtype="<f4").tobytes(),
    )
    collector = _Collector(EncryptedSum(plan, public), signed, roster, heard)
    collector.collect(sites.train(order, signed.names))
    down = sum(map(len, order.to_wire()[1].values())) * len(signed.names)
    survivors = tuple(sorted(collector.survivors))
    if len(survivors) < signed.min_sites:
        raise _too_few(len(survivors), signed.min_sites, list(collector.failures.values()))
    proofs = _Proofs()
    if plan.masked and config.encryption.recover_dropouts:
        proofs = _unmask(sites, order, signed, plan, survivors, roster)
    elif plan.masked and collector.failures:
        raise _dropped_out(collector.failures)
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
        seconds={"aggregate": collector.seconds, "decrypt": decrypt},
    )


class _Collector:
    """Checks each site's answer and adds its update to the sum as it arrives."""

    def __init__(
        self,
        total: EncryptedSum,
        statement: RoundStatement,
        roster: Roster,
        heard: Callable[[str, int, int], None],
    ) -> None:
        self.total = total
        self.survivors: list[str] = []
        self.failures: dict[str, FedllmError] = {}
        self.bytes_up = 0
        self.seconds = 0.0
        self._statement = statement
        self._roster = roster
        self._heard = heard

    def collect(self, answers: Iterator[tuple[str, Trained | FedllmError]]) -> None:
        """Take all answers; a site whose answer is refused counts as dropped."""
        for name, answer in answers:
            started = time.perf_counter()
            try:
                self._add(name, answer)
                self.survivors.append(name)
            except FedllmError as error:
                self.failures[name] = error
            self.seconds += time.perf_counter() - started
            done = len(self.survivors) + len(self.failures)
            self._heard(name, done, len(self._statement.cohort))

    def _add(self, name: str, answer: Trained | FedllmError) -> None:
        if isinstance(answer, FedllmError):
            raise answer
        self.bytes_up += len(answer.update)
        if answer.header.refusal is not None:
            raise answer.header.refusal.to_error(name)
        require(answer.header.site == name, f"'{name}' answered as '{answer.header.site}'")
        self.total.add(unseal(answer.update, self._statement, self.total.plan, name, self._roster))


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
    settled = _all_answers(sites.settle(settle, survivors), survivors)
    signatures = tuple(settled[name].header.signature for name in survivors)
    check_settled(mask_scope(statement, plan), survivors, signatures, roster)
    unmask = Unmask(UnmaskHeader(**about, survivors=survivors, signatures=signatures), order.plan)
    unmasked = _all_answers(sites.unmask(unmask, survivors), survivors)
    return _Proofs(signatures, tuple(unmasked[name].header.reveal for name in survivors))


def _all_answers(
    answers: Iterator[tuple[str, Answer | FedllmError]], names: tuple[str, ...]
) -> dict[str, Answer]:
    """Collect one good answer from each name; the round is lost if one is missing."""
    result: dict[str, Answer] = {}
    for name, answer in answers:
        if isinstance(answer, FedllmError):
            raise answer
        if answer.header.refusal is not None:
            raise answer.header.refusal.to_error(name)
        require(answer.header.site == name, f"'{name}' answered as '{answer.header.site}'")
        result[name] = answer
    require(set(result) == set(names), "a survivor of the round did not answer")
    return result


def _dropped_out(failures: dict[str, FedllmError]) -> FedllmError:
    name, error = next(iter(failures.items()))
    if isinstance(error, PeerError):
        return PeerError(
            f"{len(failures)} sites dropped out of a round whose masks need all of them; "
            f"{name}: {error.message}",
            "set encryption.recover_dropouts = true to finish such rounds without them",
        )
    return error


def _joined(answer: Joined | FedllmError, node: str) -> Member:
    if isinstance(answer, FedllmError):
        raise answer
    if answer.header.refusal is not None:
        raise answer.header.refusal.to_error(node)
    if answer.header.member is None:
        raise PeerError(f"{node} answered neither yes nor no")
    return answer.header.member


def _open_round(
    authority: KeyAuthority, statement: RoundStatement, plan: EncryptionPlan, roster: Roster
) -> RoundOpened:
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
    return opened


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


def _too_few(there: int, needed: int, failures: list[FedllmError]) -> FedllmError:
    if not failures:
        return PeerError(
            f"{there} sites take part; rounds.min_sites is {needed}", "wait for more sites"
        )
    kind, _ = Counter(type(error) for error in failures).most_common(1)[0]
    first = next(error for error in failures if type(error) is kind)
    more = f" (and {len(failures) - 1} more sites failed)" if len(failures) > 1 else ""
    return kind(
        f"{there} sites can go on, {needed} are needed. {first.message}{more}", first.remedy
    )


def statement_of(
    terms: Terms,
    cohort: tuple[Member, ...],
    number: int,
    attempt: int,
    noise_multiplier: float | None,
    purpose: Purpose = "update",
) -> RoundStatement:
    """Return the proposal of one round, before the authority adds plan and key."""
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
        config=digest(terms.config_text),
        noise_multiplier=noise_multiplier,
    )
