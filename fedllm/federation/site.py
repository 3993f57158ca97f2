"""A site: joins a run, trains its rounds, keeps its ledger, and takes its masks off."""

from __future__ import annotations

import json
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from fedllm.config import RunConfig, SitePolicy, Task, parse
from fedllm.data.encode import EncodedDataset
from fedllm.data.records import Record
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.quantise import Quantiser
from fedllm.encryption.schemes import PublicRoundKey
from fedllm.encryption.update import seal_levels
from fedllm.errors import PeerError, RefusedError
from fedllm.federation.charging import SiteAccount
from fedllm.federation.discrete import make_grid
from fedllm.federation.evaluating import Bounds, noised_sum, sum_shape
from fedllm.federation.masking import (
    check_settled,
    hex_bytes,
    mask_scope,
    reveal_purpose,
    site_masks,
)
from fedllm.federation.memory import SiteMemory
from fedllm.federation.messages import (
    Join,
    Joined,
    JoinedHeader,
    Refusal,
    RoundStatement,
    Settle,
    Settled,
    SettledHeader,
    Train,
    Trained,
    TrainedHeader,
    Unmask,
    Unmasked,
    UnmaskedHeader,
    digest,
)
from fedllm.federation.models import ModelCache
from fedllm.federation.site_data import SiteData
from fedllm.federation.statements import make_member, read_statement, require, require_cohort
from fedllm.federation.terms import check_allowed, local_settings
from fedllm.federation.updates import seal
from fedllm.files import append_line
from fedllm.identity.keys import Identity
from fedllm.identity.roster import Roster
from fedllm.identity.sealing import seal_for
from fedllm.models.shared import SharedModel
from fedllm.privacy.whole import private_update
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import unit_scores
from fedllm.training.local import LocalStatistics, clipped_gradient_sum, train_locally

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SiteFiles:
    """Where a site keeps what it must not lose.

    Attributes
    ----------
    ledger : Path
        The privacy ledger.
    memory : Path
        What was trained and settled; see `SiteMemory`.
    log : Path
        The site's own log of rounds, with losses and timings; never sent.
    """

    ledger: Path
    memory: Path
    log: Path


class Site:
    """Everything that runs at one site; no record and nothing computed from one leaves in clear.

    Parameters
    ----------
    identity : Identity
        The site's keys.
    roster : Roster
        The federation's parties, pinned.
    policy : SitePolicy
        What the site allows.
    files : SiteFiles
        The site's own files.
    model_path : str
        Where the site keeps the base model; its fingerprint is what counts.
    records : callable
        Reads the site's training records of a task.
    models : ModelCache
        Keeps the base model in memory.
    full_errors : bool
        Whether errors leave with their whole text (simulation).
    """

    def __init__(
        self,
        *,
        identity: Identity,
        roster: Roster,
        policy: SitePolicy,
        files: SiteFiles,
        model_path: str,
        records: Callable[[Task], list[Record]],
        models: ModelCache,
        full_errors: bool = False,
    ) -> None:
        self.name = identity.name
        self._identity = identity
        self._roster = roster
        self._policy = policy
        self._files = files
        self._model_path = model_path
        self._data = SiteData(records, identity)
        self._models = models
        self._full_errors = full_errors
        self._clipping_norms: dict[str, float] = {}
        self._memory = SiteMemory(files.memory)
        self._accounts: dict[Task, SiteAccount] = {}

    def join(self, request: Join) -> Joined:
        """Say whether this site takes part in a run; a yes holds its signed mask key."""

        def agree() -> Joined:
            header = request.header
            config = self._configuration(header.config)
            check_allowed(config, self._policy.allow, header.model)
            model = self._model(config, header.labels, header.model)
            require(
                model.manifest.length == header.adapter_length,
                f"the run's adapter has {header.adapter_length} values, this site's "
                f"{model.manifest.length}",
            )
            require(1 <= header.round <= config.rounds.count, "there is no such round")
            units = self._data.datasets(config, model).training.number_of_units
            length = model.manifest.length
            self._account(config.task).check_run(header.run, header.round, config, units, length)
            return Joined(JoinedHeader(member=make_member(self._identity, header.run)))

        return self._guarded(agree, lambda refusal: Joined(JoinedHeader(refusal=refusal)))

    def train(self, request: Train) -> Trained:
        """Do one round's work: check, reserve, train or evaluate, seal, commit, answer."""

        def work() -> Trained:
            order = self._checked(request)
            self._memory.begin(order.statement.series, order.statement.attempt)
            if order.statement.purpose == "evaluation":
                sealed = self._evaluate_round(order)
            else:
                sealed = self._train_round(order)
            return Trained(TrainedHeader(site=self.name), sealed)

        return self._guarded(
            work, lambda refusal: Trained(TrainedHeader(site=self.name, refusal=refusal), b"")
        )

    def settle(self, request: Settle) -> Settled:
        """Agree, once, on the sites whose updates are in the sum."""

        def agree() -> Settled:
            header = request.header
            statement = read_statement(header.statement, header.signature, self._roster)
            masks = site_masks(self._identity, statement, self._plan(request.plan, statement), True)
            words = masks.statement(header.survivors)
            self._memory.settle(statement.series, statement.attempt, header.survivors)
            signature = self._identity.sign(words).hex()
            return Settled(SettledHeader(site=self.name, signature=signature))

        return self._guarded(
            agree, lambda refusal: Settled(SettledHeader(site=self.name, refusal=refusal))
        )

    def unmask(self, request: Unmask) -> Unmasked:
        """Reveal what opens the sum of the survivors, when all of them agree on who they are."""

        def reveal() -> Unmasked:
            header = request.header
            statement = read_statement(header.statement, header.signature, self._roster)
            plan = self._plan(request.plan, statement)
            survivors = self._memory.settled(statement.series, statement.attempt)
            require(survivors == header.survivors, "these are not the survivors settled on")
            statements = check_settled(
                mask_scope(statement, plan), survivors, header.signatures, self._roster
            )
            masks = site_masks(self._identity, statement, plan, True)
            masks.statement(survivors)
            sealed = seal_for(
                hex_bytes(statement.reveal_key),
                masks.reveal(statements).to_bytes(),
                reveal_purpose(statement, self.name),
            )
            return Unmasked(UnmaskedHeader(site=self.name, reveal=sealed.hex()))

        return self._guarded(
            reveal, lambda refusal: Unmasked(UnmaskedHeader(site=self.name, refusal=refusal))
        )

    def _guarded(self, work: Callable[[], Answer], refuse: Callable[[Refusal], Answer]) -> Answer:
        try:
            return work()
        except Exception as error:
            if not self._full_errors:
                self._log_error(error)
            return refuse(Refusal.of(error, self._full_errors))

    def _checked(self, request: Train) -> _Order:
        header = request.header
        statement = read_statement(header.statement, header.signature, self._roster)
        require(
            digest(header.config) == statement.config, "the configuration is not the signed one"
        )
        config = self._configuration(header.config)
        check_allowed(config, self._policy.allow, header.model)
        require_cohort(statement, self._policy.allow.min_cohort)
        require(statement.min_sites == config.rounds.min_sites, "the minimum cohort differs")
        require(statement.rounds == config.rounds.count, "the number of rounds differs")
        require(1 <= statement.round <= statement.rounds, "there is no such round")
        mine = make_member(self._identity, statement.run)
        require(mine in statement.cohort, "this site's entry in the cohort is not its own")
        plan = self._plan(request.plan, statement)
        wanted = config.encryption
        require(
            (plan.scheme, plan.masked) == (wanted.scheme, wanted.masked),
            "the encryption plan is not what the configuration asks for",
        )
        key = PublicRoundKey.from_bytes(plan, request.public_key)
        require(key.fingerprint == statement.key, "the public key is not the signed one")
        model = self._model(config, header.labels, header.model)
        adapter = np.frombuffer(request.adapter, dtype="<f4").astype(np.float32)
        quantiser = self._quantiser(config, statement, plan, header.bounds, model)
        return _Order(statement, config, plan, key, model, adapter, quantiser)

    @staticmethod
    def _quantiser(
        config: RunConfig,
        statement: RoundStatement,
        plan: EncryptionPlan,
        bounds: Bounds,
        model: SharedModel,
    ) -> Quantiser:
        shape = sum_shape(config, statement.purpose, model.manifest.length, bounds)
        require(
            (plan.length, plan.bits) == (shape.length, shape.bits) and bounds == shape.bounds,
            "the encryption plan or the bounds are for another vector",
        )
        if statement.purpose == "update":
            require(
                [size for size, _ in bounds] == [s.size for s in model.manifest.segments],
                "the bounds are for another adapter",
            )
            if config.discrete_noise:
                grid = make_grid(config, model.manifest.length)
                require(
                    all(bound == grid.bound for _, bound in bounds),
                    "the bounds are not the grid that this run's noise is counted on",
                )
        return Quantiser(bounds, plan.bits)

    def _train_round(self, order: _Order) -> bytes:
        dataset = self._data.datasets(order.config, order.model).training
        units, length = dataset.number_of_units, order.model.manifest.length
        paid = self._account(order.config.task).reserve(
            order.statement, order.config, units, length
        )
        started = time.perf_counter()
        levels, statistics = self._train(order, dataset, paid.noise_multiplier)
        trained = time.perf_counter()
        sealed = self._seal(order, levels)
        self._account(order.config.task).commit(paid)
        self._log(order.statement, statistics, trained - started, time.perf_counter() - trained)
        return sealed

    def _evaluate_round(self, order: _Order) -> bytes:
        dataset = self._data.datasets(order.config, order.model).held_out
        paid = self._account(order.config.task).reserve_evaluation(order.statement, order.config)
        order.model.set_adapter(order.adapter)
        scores = np.zeros((0, 2)) if dataset is None else unit_scores(order.model, dataset)
        noised = noised_sum(order.config, scores, RandomStream.secure())
        sealed = self._seal(
            order, order.quantiser.quantise(noised, self._random(order, "rounding"))
        )
        self._account(order.config.task).commit(paid)
        return sealed

    def _train(
        self, order: _Order, dataset: EncodedDataset, noise_multiplier: float | None
    ) -> tuple[NDArray[np.uint64], LocalStatistics]:
        """Return the site's update as quantised levels, noise included."""
        config, model = order.config, order.model
        model.set_adapter(order.adapter)
        settings = local_settings(config, dataset.number_of_units, noise_multiplier)
        sampling = self._random(order, "sampling")
        if config.discrete_noise and noise_multiplier is not None:
            total, statistics = clipped_gradient_sum(model, dataset, settings, sampling)
            grid = make_grid(config, model.manifest.length)
            norm, secure = config.privacy.clipping_norm, RandomStream.secure()
            return grid.noised_levels(total, norm, noise_multiplier, secure), statistics
        whole_site = config.unit == "site" and noise_multiplier is not None
        if whole_site:
            settings = replace(settings, noise_multiplier=None)
        # After a restart the norm starts anew; what it follows is noised either way.
        norm = self._clipping_norms.get(order.statement.run, settings.clipping_norm)
        settings = replace(settings, clipping_norm=norm)
        result = train_locally(
            model, dataset, settings, sampling=sampling, noise=RandomStream.secure()
        )
        if settings.clipping_quantile is not None:
            self._clipping_norms[order.statement.run] = result.clipping_norm
        update = result.update
        if whole_site and noise_multiplier is not None:
            update = private_update(
                update,
                config.privacy.clipping_norm,
                noise_multiplier,
                settings.noise_share,
                RandomStream.secure(),
            )
        return order.quantiser.quantise(update, self._random(order, "rounding")), result.statistics

    def _seal(self, order: _Order, levels: NDArray[np.uint64]) -> bytes:
        masks = None
        if order.plan.masked:
            recover = order.config.encryption.recover_dropouts
            masks = site_masks(
                self._identity, order.statement, order.plan, recover
            ).mask_for_update()
        payload = seal_levels(levels, order.plan, order.key, masks)
        return seal(payload, order.statement, order.plan, self._identity)

    def _random(self, order: _Order, purpose: str) -> RandomStream:
        # A run without privacy promises nothing, and can be repeated exactly instead.
        if order.config.private:
            return RandomStream.secure()
        return RandomStream.seeded(order.config.seed, purpose, self.name, order.statement.round)

    def _configuration(self, text: str) -> RunConfig:
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            raise PeerError("the coordinator sent a configuration that is not TOML") from None
        values.setdefault("model", {})["path"] = self._model_path
        return parse(RunConfig, values, "the coordinator's configuration")

    def _plan(self, blob: bytes, statement: RoundStatement) -> EncryptionPlan:
        plan = EncryptionPlan.from_bytes(blob)
        require(plan.fingerprint() == statement.plan, "the encryption plan is not the signed one")
        require(plan.max_sites >= len(statement.cohort), "the plan is for a smaller cohort")
        return plan

    def _model(self, config: RunConfig, labels: tuple[str, ...], fingerprint: str) -> SharedModel:
        model = self._models.get(config, labels)
        if model.fingerprint != fingerprint:
            raise RefusedError(
                "the base model at this site is not the one that the run is for",
                "install the model whose fingerprint the coordinator names",
            )
        return model

    def _account(self, task: Task) -> SiteAccount:
        if task not in self._accounts:
            records = self._data.records(task)
            self._accounts[task] = SiteAccount(
                self._files.ledger, self._identity, self._policy.budget, records
            )
        return self._accounts[task]

    def _log(
        self,
        statement: RoundStatement,
        statistics: LocalStatistics,
        train_s: float,
        encrypt_s: float,
    ) -> None:
        line = {
            "run": statement.run,
            "round": statement.round,
            "attempt": statement.attempt,
            "seconds": {"train": train_s, "encrypt": encrypt_s},
            "loss": statistics.loss if np.isfinite(statistics.loss) else None,
            "records_seen": statistics.records_seen,
            "empty_batches": statistics.empty_batches,
            "norm_quantiles": statistics.norm_quantiles,
        }
        append_line(self._files.log, json.dumps(line))

    def _log_error(self, error: Exception) -> None:
        line = {"error": type(error).__name__, "text": str(error)}
        append_line(self._files.log, json.dumps(line))


@dataclass(frozen=True)
class _Order:
    """A checked order to train."""

    statement: RoundStatement
    config: RunConfig
    plan: EncryptionPlan
    key: PublicRoundKey
    model: SharedModel
    adapter: NDArray[np.float32]
    quantiser: Quantiser
