"""One run of `adapters.py`: the product's rounds in one process, without encryption.

Mechanism, accountant, adapter method, quantiser and the coordinator's optimiser are those that
`fedllm simulate` runs, site by site. Two things are done otherwise, for time alone: updates are
added as integers in the open, whose sum is the one under encryption
(tests/federation/test_round.py); and the gradients of a site's batch are computed together, where
the product computes each unit's by itself so that none can change another's. Both give the same
clipped sum up to float32 rounding, which `Bench.check` holds them to before anything is measured.
"""

from __future__ import annotations

import os
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedllm.adapters import AdapterMethod, adapter_of, sent_in_turn
from fedllm.config import RunConfig, load_run_config
from fedllm.data.encode import EncodedDataset
from fedllm.data.partition import split_into_sites
from fedllm.data.records import Record
from fedllm.encryption.plan import make_plan
from fedllm.encryption.quantise import Quantiser
from fedllm.mechanisms import (
    LocalResult,
    LocalSettings,
    LocalStatistics,
    SiteRound,
    mechanism_of,
)
from fedllm.models.pieces import by_width
from fedllm.models.shared import SharedModel
from fedllm.models.transformer import Batch
from fedllm.privacy.dpsgd import (
    Gradients,
    OuterProducts,
    per_sample_gradients,
    per_sample_hooks,
    poisson_batch,
)
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
from fedllm.training.local import clipped_gradient_sum
from fedllm.training.objectives import record_losses
from fedllm.training.server_optimizer import ServerOptimizer
from fedllm_server.starting import starting_state

Vector = NDArray[np.float64]
EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = Path(os.environ.get("FEDLLM_DATA", Path(__file__).parents[2] / "shared/data")).absolute()
ROWS = 64
# The part of train on which settings are judged, and the seed of its runs.
JUDGED_PART, CHOOSING_SEED = 0.25, 100
NOTHING = LocalStatistics(0.0, 0, 0, ())


@dataclass(frozen=True)
class Setup:
    """A data set with its model.

    Attributes
    ----------
    name, example : str
        In the tables, and the configuration that is started from, below `EXAMPLES`.
    overrides : tuple of str
        What is set in it for all runs.
    metric : str
        The product's figure; ``higher`` says which way is better.
    splits : tuple of str
        How the records lie at sites.
    public : str
        Public texts of the same kind, or of any, below `DATA`.
    """

    name: str
    example: str
    overrides: tuple[str, ...]
    metric: str
    higher: bool
    splits: tuple[str, ...]
    public: str


BANK = Setup(
    "banking77",
    "bank_intents/adapters.toml",
    (),
    "accuracy",
    True,
    ("iid", "dirichlet"),
    "clinc_finance/train.jsonl.gz",
)
MEDQUAD = Setup(
    "medquad",
    "hospital_questions/run.toml",
    (
        "model.max_length=96",
        "lora.last_layers=2",
        "data.test_limit=300",
        'lora.target_modules="auto"',
    ),
    "loss",
    False,
    ("iid", "natural"),
    "pretrain_en/train.jsonl.gz",
)
SETUPS = {setup.name: setup for setup in (BANK, MEDQUAD)}


@dataclass(frozen=True)
class Setting:
    """What is chosen on a part of train.

    Attributes
    ----------
    rounds, rate
        Number of rounds, and the sampling rate of each.
    head, adapter : float
        Step sizes of the coordinator's optimiser for the head and for the adapter.
    optimizer : str
        The coordinator's.
    """

    rounds: int
    rate: float
    head: float
    adapter: float
    optimizer: str = "adam"


@dataclass(frozen=True)
class Case:
    """One run: on which records, and how.

    Attributes
    ----------
    stage : {"choose", "test"}
        Judged on a part of train that is not trained on, or on the test file.
    epsilon : float, optional
        None: without privacy.
    records : int
        Of the training file's, the same in every run; 0 for all.
    """

    data: str
    stage: str
    method: str
    rank: int
    split: str
    epsilon: float | None
    seed: int
    setting: Setting
    records: int = 0

    @property
    def key(self) -> str:
        """Name of the run in the file of results."""
        s = self.setting
        which = f"{s.rounds}x{s.rate:g}/{s.optimizer}/{s.head:g}/{s.adapter:g}"
        return (
            f"{self.data}/{self.stage}/{self.method}-{self.rank}/{self.split}/"
            f"{self.epsilon or 'none'}/{self.seed}/{which}/{self.records or 'all'}"
        )


@contextmanager
def quick_attention() -> Iterator[None]:
    """Take PyTorch's plain attention: its fused one is slower on a CPU for texts this short."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Features:
    """States that enter the first trained layer, computed once for each record that is used.

    Parameters
    ----------
    model : SharedModel
        Any that is cut at that layer.
    dataset : EncodedDataset
        The whole file.
    """

    def __init__(self, model: SharedModel, dataset: EncodedDataset) -> None:
        self.dataset = dataset
        self._module = model.module
        self._pooled = model.module.one_vector
        self._states: dict[int, torch.Tensor] = {}

    def ready(self, rows: NDArray[np.int64]) -> None:
        """Compute what is not there yet of some rows of the file."""
        missing = np.array(
            [row for row in rows.tolist() if row not in self._states], dtype=np.int64
        )
        if not len(missing) or not self._module.stack.has_frozen_part:
            return
        for start in range(0, len(missing), 1024):
            part = missing[start : start + 1024]
            for places, piece in by_width(self.dataset.batch(part), ROWS):
                with torch.no_grad(), quick_attention():
                    states = self._module.prefix(piece)
                sizes = piece["attention_mask"].sum(1).tolist()
                for row, own, size in zip(part[places.numpy()], states, sizes, strict=True):
                    self._states[int(row)] = own[: 1 if self._pooled else size].clone()

    def pieces(self, rows: NDArray[np.int64], size: int = ROWS) -> Iterator[Batch]:
        """Yield some rows of the file as batches with their states."""
        if not len(rows):
            return
        self.ready(rows)
        for places, piece in by_width(self.dataset.batch(rows), size):
            if not self._states:
                yield piece
                continue
            own = [self._states[int(row)] for row in rows[places.numpy()]]
            width = 1 if self._pooled else piece["input_ids"].shape[1]
            states = own[0].new_zeros(len(own), width, own[0].shape[1])
            for place, state in enumerate(own):
                states[place, : len(state)] = state
            yield {**piece, "states": states}


@dataclass(frozen=True)
class SiteInBatches:
    """A site's training as `fedllm.mechanisms` asks for it; see `LocalWork`."""

    model: SharedModel
    method: AdapterMethod
    features: Features
    rows: NDArray[np.int64]

    @property
    def units(self) -> int:
        """Records."""
        return len(self.rows)

    @property
    def length(self) -> int:
        """Values of an update."""
        return self.method.up.length

    def _drawn(self, rate: float, sampling: RandomStream) -> NDArray[np.int64]:
        chosen = poisson_batch(np.arange(self.units), self.units, rate, sampling)
        return self.rows[chosen]

    def gradient_sum(
        self, settings: LocalSettings, sampling: RandomStream
    ) -> tuple[Vector, LocalStatistics]:
        """Sum one Poisson batch's clipped gradients."""
        rows = self._drawn(settings.sampling_rate, sampling)
        total = self.clipped_sum(rows, settings.clipping_norm)
        return self.method.upward(total), NOTHING

    def clipped_sum(self, rows: NDArray[np.int64], norm: float) -> Vector:
        """Sum the clipped gradients of these records, (T,)."""
        model = self.model
        total = np.zeros(model.manifest.length)
        with per_sample_hooks(model.module, model.row_layers):
            for batch in self.features.pieces(rows):
                found = per_sample_gradients(
                    model.trained, lambda batch=batch: record_losses(model, batch)
                )
                squares = sum(_squares(gradient) for gradient in found)
                weights = (norm / torch.sqrt(squares).clamp(min=norm)).float()
                total += torch.cat([_weighted(g, weights) for g in found]).double().numpy()
        return total

    def train(
        self, settings: LocalSettings, sampling: RandomStream, noise: RandomStream
    ) -> LocalResult:
        """Take one plain step, without privacy."""
        if settings.steps != 1 or settings.noise_multiplier is not None:
            raise RuntimeError("this bench sends one gradient a round")
        model = self.model
        total = np.zeros(model.manifest.length)
        for batch in self.features.pieces(self._drawn(settings.sampling_rate, sampling)):
            loss = record_losses(model, batch).sum()
            parts = torch.autograd.grad(loss, model.trained, materialize_grads=True)
            total += torch.cat([part.flatten() for part in parts]).double().numpy()
        rates = model.manifest.per_value(settings.learning_rate, settings.head_learning_rate)
        update = (-rates * total / settings.expected_batch_size).astype(np.float32)
        return LocalResult(self.method.upward(update), NOTHING, settings.clipping_norm)


def _squares(gradient: Gradients) -> torch.Tensor:
    if isinstance(gradient, OuterProducts):
        return gradient.backprops.square().sum(1) * gradient.activations.square().sum(1)
    return gradient.flatten(1).square().sum(1)


def _weighted(gradient: Gradients, weights: torch.Tensor) -> torch.Tensor:
    if isinstance(gradient, OuterProducts):
        return ((gradient.backprops * weights[:, None]).T @ gradient.activations).flatten()
    return weights @ gradient.flatten(1)


class Bench:
    """One data set: records, encodings, features and models, each made once.

    Parameters
    ----------
    setup : Setup
        Which.
    model : str, optional
        Folder of another base model.
    limit : int, optional
        Use so many training records.
    """

    def __init__(self, setup: Setup, model: str | None = None, limit: int | None = None) -> None:
        self.setup = setup
        self._given = (*setup.overrides, *([f'model.path="{model}"'] if model else []))
        config = self._load(["lora.rank=8"])
        self._task, self._data = task_of(config), config.data
        self._records = self._task.read(config.data.train, config.data)[:limit]
        test = self._task.read_public(config.data)
        if limit:
            test = test[: max(20, limit // 4)]
        elif config.data.test_limit:
            # Another sample than a plain run's would do as well; this one needs no second reading.
            picked = RandomStream.seeded(0, "test").permutation(len(test))
            test = [test[i] for i in sorted(picked[: config.data.test_limit])]
        self._labels = self._task.labels(config.data, test if not limit else self._all_test(config))
        self._test_records = test
        self._place = {id(record): row for row, record in enumerate(self._records)}
        self._models: dict[str, SharedModel] = {}
        self._features: dict[tuple[int, str], Features] = {}

    def _all_test(self, config: RunConfig) -> list[Record]:
        return list(self._task.read_public(config.data))

    def _load(self, overrides: list[str]) -> RunConfig:
        return load_run_config(EXAMPLES / self.setup.example, [*self._given, *overrides])

    def config(self, case: Case) -> RunConfig:
        """Return the run configuration of a case."""
        head, s = case.method == "head", case.setting
        records = min(case.records or len(self._records), len(self._records))
        if case.stage == "choose":
            records = round(records * (1 - JUDGED_PART))
        sites = 9 if case.split == "natural" else self._data.sites
        return self._load(
            [
                f"lora.rank={case.rank}",
                f"lora.alpha={2 * case.rank or 16}",
                "lora.method=" if head else f'lora.method="{case.method}"',
                *(
                    [f'lora.public_texts="{DATA / self.setup.public}"']
                    if case.method == "eva"
                    else []
                ),
                f"seed={case.seed}",
                *(["data.site="] if case.split != "natural" else []),
                f'data.partition="{case.split if case.split == "dirichlet" else "iid"}"',
                f"rounds.count={s.rounds}",
                f"rounds.min_sites={sites}",
                f'rounds.optimizer="{s.optimizer}"',
                f"rounds.learning_rate={s.adapter or s.head}",
                f"rounds.head_learning_rate={s.head}",
                "training.learning_rate=1.0",
                "training.head_learning_rate=1.0",
                f"training.sampling_rate={s.rate}",
                f"training.batch_size={max(1, round(s.rate * records / sites))}",
                f"privacy.epsilon={case.epsilon or 'none'}",
                "encryption.bits=20",
            ]
        )

    def model(self, config: RunConfig) -> SharedModel:
        """Return the untrained model of a run; the last few are kept."""
        key = f"{config.lora} {config.seed}"
        if key not in self._models:
            if len(self._models) > 8:
                self._models.clear()
            self._models[key] = self._task.load_model(config, self._labels)
        return self._models[key]

    def features(self, model: SharedModel, which: str) -> Features:
        """Return the features of the "train" or the "test" file below a model's trained layers."""
        key = (model.module.stack.first, which)
        if key not in self._features:
            records = self._records if which == "train" else self._test_records
            length = self._load([]).model.max_length
            encoded = self._task.encode(records, model.tokenizer, length, self._labels)
            self._features[key] = Features(model, encoded)
        return self._features[key]

    def _parts(self, case: Case, config: RunConfig) -> tuple[list[NDArray[np.int64]], Any]:
        """Return each site's rows of train, and the rows that settings are judged on."""
        records, judged = self._records, None
        if case.records:
            drawn = RandomStream.seeded(CHOOSING_SEED, "records").permutation(len(records))
            records = [records[i] for i in sorted(drawn[: case.records])]
        if case.stage == "choose":
            order = RandomStream.seeded(CHOOSING_SEED, "judged").permutation(len(records))
            cut = round(len(records) * JUDGED_PART)
            judged = np.array(sorted(self._place[id(records[i])] for i in order[:cut]))
            records = [records[i] for i in sorted(order[cut:])]
        parts = split_into_sites(records, config.data, case.seed)
        rows = [
            np.array([self._place[id(record)] for record in parts[name]]) for name in sorted(parts)
        ]
        return rows, judged

    def run(self, case: Case) -> dict[str, Any]:
        """Train a case; return its metric, what each judged record adds to it, and its cost."""
        config = self.config(case)
        model = self.model(config)
        features = self.features(model, "train")
        rows, judged = self._parts(case, config)
        features.ready(np.concatenate(rows))
        began = time.process_time()
        with quick_attention():
            adapter = self._trained(config, model, features, rows)
            took = time.process_time() - began
            adapter_of(model).place(adapter)
            on = features if judged is not None else self.features(model, "test")
            where = judged if judged is not None else np.arange(len(on.dataset))
            scores = self._scores(model, on, where)
            adapter_of(model).place(adapter_of(model).start())
        turns = sent_in_turn(model)
        return {
            "metric": float(scores[:, 0].sum() / scores[:, 1].sum()),
            "cpu_s": took,
            "values_up": [up.length for up in turns],
            "bytes_up": sum(
                _bytes_up(config, turns[n % len(turns)].length, len(rows))
                for n in range(config.rounds.count)
            )
            * len(rows),
            "noise": mechanism_of(config).announced_noise(1, ()),
            "sites": [len(own) for own in rows],
            "batch": config.training.batch_size,
            "scores": _packed(scores) if judged is None else None,
        }

    def untrained(self, case: Case) -> float:
        """Return the metric on the test file before training."""
        model = self.model(self.config(case))
        adapter_of(model).place(adapter_of(model).start())
        on = self.features(model, "test")
        scores = self._scores(model, on, np.arange(len(on.dataset)))
        return float(scores[:, 0].sum() / scores[:, 1].sum())

    def _trained(
        self,
        config: RunConfig,
        model: SharedModel,
        features: Features,
        rows: list[NDArray[np.int64]],
    ) -> NDArray[np.float32]:
        mechanism, turns = mechanism_of(config), sent_in_turn(model)
        quantisers = [_quantiser(config, up) for up in turns]
        optimizer = ServerOptimizer(config.rounds, *turns)
        noise = mechanism.announced_noise(1, ())
        adapter = starting_state(config, model, None).adapter
        for number in range(1, config.rounds.count + 1):
            method = adapter_of(model, number)
            quantiser = quantisers[(number - 1) % len(turns)]
            total = np.zeros(method.up.length, dtype=np.uint64)
            for place, own in enumerate(rows):
                method.place(adapter)
                asked = SiteRound(
                    SiteInBatches(model, method, features, own),
                    mechanism.announced_units(len(own)),
                    noise,
                    quantiser.quantise,
                    quantiser.quantise_parts,
                    (f"site-{place}", number),
                )
                total += mechanism.contribute(asked).levels
            mean = quantiser.dequantise_sum(total, len(rows)) / len(rows)
            adapter = method.advance(adapter, mean, optimizer)
        return adapter

    @torch.no_grad()
    def _scores(self, model: SharedModel, on: Features, rows: NDArray[np.int64]) -> Vector:
        """Return of each record what it adds to the metric's sum, and what that is divided by."""
        found = []
        place = self._task.measures.index(self.setup.metric)
        for row in [rows] if self._labels else rows[:, None]:
            for batch in on.pieces(row):
                if self._labels:
                    order = [score.name for score in self._task.site_scores]
                    own = self._task.scores(model, batch)[:, order.index(self.setup.metric)]
                    found.append(np.stack([own, np.ones(len(own))], axis=1))
                else:
                    sums = self._task.sums(model, batch)
                    found.append(np.array([[sums[place], sums[-1]]]))
        return np.concatenate(found)

    def check(self, case: Case) -> float:
        """Return how far the sum in batches is from the product's, as a part of its norm."""
        config = self.config(case)
        model = self.model(config)
        features = self.features(model, "train")
        some = self._task.encode(
            self._records[:40], model.tokenizer, config.model.max_length, self._labels
        )
        method = adapter_of(model)
        settings = replace(mechanism_of(config).settings(40, 1.0), sampling_rate=1.0)
        method.place(method.start())
        ours = SiteInBatches(model, method, features, np.arange(40)).clipped_sum(
            np.arange(40), settings.clipping_norm
        )
        theirs, _ = clipped_gradient_sum(model, some, settings, RandomStream.secure())
        return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))

    def product_cost(self, case: Case, records: int = 150) -> float:
        """Return the CPU seconds that the product takes for one record's step, each by itself."""
        config = self.config(case)
        model = self.model(config)
        encoded = self._task.encode(
            self._records[:records], model.tokenizer, config.model.max_length, self._labels
        )
        settings = replace(mechanism_of(config).settings(records, 1.0), sampling_rate=1.0)
        method = adapter_of(model)
        method.place(method.start())
        stream = RandomStream.secure()
        clipped_gradient_sum(model, encoded, settings, stream)
        began = time.process_time()
        clipped_gradient_sum(model, encoded, settings, stream)
        return (time.process_time() - began) / records


def _quantiser(config: RunConfig, up: Any) -> Quantiser:
    bounds = mechanism_of(config).bounds(up.segments)
    sizes = [segment.size for segment in up.segments]
    return Quantiser(list(zip(sizes, bounds, strict=True)), config.encryption.bits)


def _bytes_up(config: RunConfig, length: int, sites: int) -> int:
    """Return the bytes of one site's encrypted update."""
    plan = make_plan("bfv", config.encryption.bits, sites, length, True)
    return plan.update_bytes


def _packed(scores: Vector) -> dict[str, str]:
    """Return the two columns as text: float32, little-endian, compressed."""
    return {
        name: b64encode(zlib.compress(column.astype("<f4").tobytes())).decode()
        for name, column in zip(("sums", "counts"), scores.T, strict=True)
    }


def standard_error(values: list[float]) -> float:
    """Return the standard error of a mean."""
    return float(np.std(values, ddof=1) / sqrt(len(values))) if len(values) > 1 else float("nan")
