"""The coordinator's orders to a site, checked against what was signed and what the site allows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import isclose

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import AdapterMethod, adapter_of
from fedllm.config import AllowSection, RunConfig, parse, parse_toml
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import PublicRoundKey
from fedllm.errors import ConfigError, PeerError, RefusedError
from fedllm.federation.protocol.evaluating import Bounds, sum_shape
from fedllm.federation.protocol.graphs import planned_graph
from fedllm.federation.protocol.messages import SignedRound, Train
from fedllm.federation.protocol.neighbours import Around, NeighbourhoodReader, graph_of
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import (
    StatementReader,
    require,
    require_cohort,
    require_own_key,
)
from fedllm.federation.site.policy import check_allowed, check_large
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.mechanisms import mechanism_of
from fedllm.models.manifest import AdapterManifest
from fedllm.models.shared import SharedModel
from fedllm.tasks.cache import ModelCache

# Trained values stay below a hundred; see "Everything that leaves a site" in the threat model.
LARGEST_VALUE = 1000.0


@dataclass(frozen=True)
class Order:
    """A checked order to train, or to evaluate.

    Attributes
    ----------
    around : Around
        The sites that this one shares masks with.
    method : AdapterMethod
        What goes down, is trained and comes up in this model.
    adapter : float32 array (D,)
        Where the site starts, or what it evaluates.
    """

    statement: RoundStatement
    config: RunConfig
    around: Around
    plan: EncryptionPlan
    key: PublicRoundKey
    model: SharedModel
    method: AdapterMethod
    adapter: NDArray[np.float32]
    quantiser: Quantiser

    @property
    def units(self) -> int:
        """What this site announced of its size for this run; see `Mechanism.announced_units`."""
        return self.around.own.units


@dataclass(frozen=True)
class OrderReader:
    """Reads what a coordinator sends to one site; what does not fit is refused.

    Attributes
    ----------
    identity : Identity
        The site's keys.
    roster : Roster
        The federation's parties, pinned.
    allow : AllowSection
        What the site takes part in.
    models : ModelCache
        Keeps the base model in memory.
    model_path : str
        Where the site keeps the base model; its fingerprint is what counts.
    device : str, optional
        Where it computes; the processor when left out.
    """

    identity: Identity
    roster: Roster
    allow: AllowSection
    models: ModelCache
    model_path: str
    device: str | None = None

    @cached_property
    def statements(self) -> StatementReader:
        """Reads the statements that orders and all later questions about a round come with."""
        return StatementReader(self.roster)

    @cached_property
    def neighbourhoods(self) -> NeighbourhoodReader:
        """Reads what the site is told of its cohorts."""
        return NeighbourhoodReader(self.identity, self.roster)

    def configuration(self, text: str, model_fingerprint: str) -> RunConfig:
        """Read a run's configuration, with the site's own model and device, if it is allowed.

        Raises
        ------
        PeerError
            If it is not TOML.
        ConfigError
            If a key or a value is wrong.
        RefusedError
            If the site's policy does not allow such a run.
        """
        config = _read_configuration(text, self.model_path, self.device)
        check_allowed(config, self.allow, model_fingerprint)
        return config

    def model(self, config: RunConfig, labels: tuple[str, ...], fingerprint: str) -> SharedModel:
        """Return the site's base model, which must be the run's.

        Raises
        ------
        RefusedError
            If it is another.
        """
        model = self.models.get(config, labels)
        if fingerprint and fingerprint == model.earlier_fingerprint:
            raise RefusedError(
                "the coordinator names the base model by an earlier kind of fingerprint",
                "update fedllm, so that all parties run the same version",
            )
        if model.fingerprint != fingerprint:
            raise RefusedError(
                "the base model at this site is not the one that the run is for",
                "install the model whose fingerprint the coordinator names",
            )
        return model

    def require_cohort(self, statement: RoundStatement) -> None:
        """Refuse a round whose sum could be opened with fewer sites than this site accepts.

        Raises
        ------
        RefusedError
            Names both numbers.
        """
        # The operator signed the roster's; an authority that forgets it is not enough.
        require_cohort(statement, max(self.allow.min_cohort, self.roster.min_cohort))

    def asked(self, header: SignedRound) -> RoundStatement:
        """Read a statement of which something may be revealed, with what `order` asks of it.

        Raises
        ------
        PeerError
            If it is not what the key authority signed, or this site is not in its cohort.
        RefusedError
            If this site takes part in no cohort so small.
        """
        statement = self.statements.read(header.statement, header.signature)
        require(self.identity.name in statement.cohort, "this site is not in the cohort")
        self.require_cohort(statement)
        return statement

    def order(self, request: Train, ledger: str) -> Order:
        """Check an order to train or evaluate.

        ``ledger`` is the id of the site's ledger of today.

        Raises
        ------
        PeerError
            If it is not what the key authority and the cohort signed, or does not fit together.
        RefusedError
            If the site's policy does not allow it.
        """
        header = request.header
        statement = self.statements.read(header.statement, header.signature)
        require_ordered(request, statement)
        config = self.configuration(header.config, header.model)
        self.require_cohort(statement)
        require(statement.min_sites == config.rounds.min_sites, "the minimum cohort differs")
        require(statement.rounds == config.rounds.count, "the number of rounds differs")
        require(1 <= statement.round <= statement.rounds, "there is no such round")
        self._require_graph(statement, config)
        around = self.neighbourhoods.read(header.around, statement, ledger)
        require_own_key(around.own, self.identity, ledger, statement.run)
        require(
            bool(around.own.units) == bool(mechanism_of(config).announced_units(1)),
            "this site's entry in the cohort is of another kind of run",
        )
        plan = read_plan(request.plan, statement)
        wanted = config.encryption
        require(
            (plan.scheme, plan.masked) == (wanted.scheme, wanted.masked),
            "the encryption plan is not what the configuration asks for",
        )
        key = PublicRoundKey.from_bytes(plan, request.public_key)
        require(key.fingerprint == statement.key, "the public key is not the signed one")
        model = self.model(config, header.labels, header.model)
        # Of the signed round: nothing else says what it trains.
        method = adapter_of(model, statement.round)
        adapter = _read_adapter(request.adapter, method.down.length, config.private)
        quantiser = _quantiser(config, statement, plan, header.bounds, method.up, header.labels)
        return Order(statement, config, around, plan, key, model, method, adapter, quantiser)

    def _require_graph(self, statement: RoundStatement, config: RunConfig) -> None:
        graph = graph_of(statement)
        require(
            graph == planned_graph(config, len(statement.cohort)),
            "who shares masks with whom does not follow from the run's configuration",
        )
        check_large(config, graph, len(statement.cohort), self.allow)


@lru_cache(maxsize=8)
def _read_configuration(text: str, model_path: str, device: str | None) -> RunConfig:
    """Read a run's configuration; it comes with every order, to every site of a process."""
    try:
        values = parse_toml(text, "the coordinator's configuration")
    except ConfigError:
        raise PeerError("the coordinator sent a configuration that is not TOML") from None
    model = values.setdefault("model", {})
    if isinstance(model, dict):
        model["path"] = model_path
    engine = values.setdefault("engine", {})
    if isinstance(engine, dict):
        engine.pop("device", None)
        engine |= {} if device is None else {"device": device}
    return parse(RunConfig, values, "the coordinator's configuration")


def require_ordered(request: Train, statement: RoundStatement) -> None:
    """Check that an order is what was signed; else sites could be told different things.

    Raises
    ------
    PeerError
        Names what is not.
    """
    words = {
        "config": "configuration",
        "labels": "labels",
        "bounds": "bounds",
        "model": "base model",
        "adapter": "adapter",
    }
    for name, value in request.digests():
        signed = value == getattr(statement, name)
        require(signed, f"not what was signed for this round: the order's {words[name]}")


def read_plan(blob: bytes, statement: RoundStatement) -> EncryptionPlan:
    """Read the encryption plan of a round.

    Raises
    ------
    PeerError
        If it is malformed, not the signed one, or for fewer sites.
    """
    plan = EncryptionPlan.from_bytes(blob)
    require(plan.fingerprint() == statement.plan, "the encryption plan is not the signed one")
    require(plan.max_sites >= len(statement.cohort), "the plan is for a smaller cohort")
    return plan


def _read_adapter(blob: bytes, length: int, private: bool) -> NDArray[np.float32]:
    """Read where the site starts, float32 (D,).

    Raises
    ------
    PeerError
        If it has another length, or holds NaN or infinity, or in a private run values with
        which the rounding of one record's numbers could decide another's.
    """
    require(len(blob) == 4 * length, "the adapter is not as long as this site's")
    adapter = np.frombuffer(blob, dtype="<f4").astype(np.float32)
    require(bool(np.isfinite(adapter).all()), "the adapter holds NaN or infinite values")
    require(
        not private or bool((np.abs(adapter) <= LARGEST_VALUE).all()),
        f"the adapter holds values beyond {LARGEST_VALUE:g}, where rounding decides",
    )
    return adapter


def _quantiser(
    config: RunConfig,
    statement: RoundStatement,
    plan: EncryptionPlan,
    bounds: Bounds,
    up: AdapterManifest,
    labels: tuple[str, ...],
) -> Quantiser:
    shape = sum_shape(config, statement.purpose, bounds, labels)
    require(
        (plan.length, plan.bits) == (shape.length, shape.bits) and bounds == shape.bounds,
        "the encryption plan or the bounds are for another vector",
    )
    if statement.purpose == "update":
        require(
            [size for size, _ in bounds] == [s.size for s in up.segments],
            "the bounds are for another adapter",
        )
        # Smaller ones would cut noise off; on another grid discrete noise would be another.
        mine = mechanism_of(config).bounds(up.segments)
        require(
            all(
                isclose(bound, own, rel_tol=1e-9)
                for (_, bound), own in zip(bounds, mine, strict=True)
            ),
            "the bounds are not those that follow from the run's configuration",
        )
    return Quantiser(bounds, plan.bits)
