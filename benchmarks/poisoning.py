"""What one poisoning site can do, on BANKING77: with the coordinator's two tests, and without.

1. *The norm of the sum.* For cohorts of 3, 10 and 100 sites (the head alone on MiniLM features,
   epsilon 8): by how much one site must multiply its update to be caught with probability .99,
   where the others' records are as they are ("typical"), and where they pull against it as hard
   as clipping lets them ("worst"). Once with its noise, as a program does that multiplies what
   it sends; and once what its records add alone, beside noise as it should be, as who knows of
   the test does. The peer is the levels of the run's quantiser, which bound an update where
   nobody tests the sum: how many times its own norm they let a site send. Signals are measured
   at the start of training, when they are largest; the probability is that of a normal
   approximation to the noncentral chi-square law, and the least share of drawn sums that are
   caught is printed beside it.
2. *The gate on the public test file.* Ten sites, one of which trains on labels that are moved to
   the next label, and sends its update as it is, or ten times as large as far as the levels go:
   accuracy on the public test file at the end, with each test and without. All runs of a seed
   have the same records, batches and number of rounds.

Updates are added as integers in the open instead of under encryption, whose sum is the same
integers. The data are public; settings are those of examples/bank_intents, with fewer rounds.

    python benchmarks/poisoning.py [--seeds 0,1,2] [--json PATH] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass, replace
from math import erfc, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.adapters import adapter_of
from fedllm.config import RunConfig, load_run_config
from fedllm.data.encode import EncodedDataset
from fedllm.data.partition import split_into_sites
from fedllm.data.records import Record
from fedllm.encryption.quantise import Quantiser
from fedllm.federation.site.work import TrainingAtSite
from fedllm.mechanisms import SiteRound, SumLaw, mechanism_of
from fedllm.randomness import RandomStream
from fedllm.runs.checkpoints import RunState
from fedllm.tasks import task_of
from fedllm.training.evaluate import evaluate
from fedllm.training.server_optimizer import ServerOptimizer
from fedllm_server.verdicts import judge_test

FOLDER = Path(__file__).parents[1] / "examples" / "bank_intents"
SITES, BOOST, CAUGHT = 10, 10.0, 0.99
Vector = NDArray[np.float64]


class Bank:
    """The model, the records and their features, read and computed once.

    Parameters
    ----------
    count : int
        Records that are used; all where there are fewer.
    """

    def __init__(self, count: int) -> None:
        config = load_run_config(FOLDER / "run.toml", [])
        self._data, self._task = config.data, task_of(config)
        self._length = config.model.max_length
        test = self._task.read_public(self._data)
        self.labels = self._task.labels(self._data, test)
        self.model = self._task.load_model(config, self.labels)
        self.records = self._task.read(self._data.train, self._data)[:count]
        self.test = self._encode(test[: max(100, count // 4)])
        self._pooled = self._encode(self.records)
        first = np.arange(1)
        self.model.prefix.attach(self._pooled, first, self._pooled.batch(first))

    def _encode(self, records: list[Record]) -> EncodedDataset:
        return self._task.encode(records, self.model.tokenizer, self._length, self.labels)

    def sites(self, count: int, seed: int, flipped: bool = False) -> list[EncodedDataset]:
        """Deal the records out evenly; ``flipped``: the first site's labels are the next ones."""
        data = self._data.model_copy(update={"partition": "iid", "sites": count})
        parts = split_into_sites(self.records, data, seed)
        place = {id(record): row for row, record in enumerate(self.records)}
        found: list[EncodedDataset] = []
        for name in sorted(parts):
            rows = np.array([place[id(record)] for record in parts[name]])
            wrong = flipped and not found
            site = self._encode([self._next(r) for r in parts[name]] if wrong else parts[name])
            self.model.prefix.share(self._pooled, site, rows)
            found.append(site)
        return found

    def _next(self, record: Record) -> Record:
        label = self.labels[(self.labels.index(record.values["label"]) + 1) % len(self.labels)]
        return replace(record, values={**record.values, "label": label})


# --- the norm of the sum --------------------------------------------------------------------


@dataclass(frozen=True)
class Cohort:
    """One cohort of n sites, all in parts of the bounds of an update.

    Attributes
    ----------
    signals : float64 array (n, P)
        What the sites' records add; the first site is the one that multiplies.
    longest : float
        L2 norm of one site's signal at most, in a batch of the expected size.
    share : float
        Standard deviation of one site's noise in a value.
    law : SumLaw
        What the coordinator tests by.
    sizes : list of int
        Values of each tensor.
    """

    signals: Vector
    longest: float
    share: float
    law: SumLaw
    sizes: list[int]

    def mean(self, times: float, worst: bool) -> Vector:
        """Return what the sites' records add when the first site multiplies its own."""
        mine = self.signals[0]
        others = self.signals[1:].sum(0)
        if worst:
            others = -(len(self.signals) - 1) * self.longest * mine / np.linalg.norm(mine)
        return others + times * mine

    def variance(self, times: float, noisy: bool) -> float:
        """Return the variance of one value of the sum; rounding is far below the noise."""
        return (len(self.signals) - 1 + (times**2 if noisy else 1.0)) * self.share**2

    def probability(self, times: float, worst: bool, noisy: bool) -> float:
        """Return how likely the sum is caught, by the test that sees it best."""
        mean, v = self.mean(times, worst), self.variance(times, noisy)
        parts = [mean, *np.split(mean, np.cumsum(self.sizes)[:-1])]
        found = 0.0
        for part in parts:
            square = float(part @ part)
            limit = self.law.limit(len(part), len(parts))
            spread = sqrt(2 * v * v * len(part) + 4 * v * square)
            found = max(found, erfc((limit**2 - v * len(part) - square) / spread / sqrt(2)) / 2)
        return found

    def smallest(self, worst: bool, noisy: bool) -> float:
        """Return the smallest factor from which on it is caught with probability .99."""
        # Where the others pull against it, a sum is shortest when they are outweighed.
        low = high = 1.0
        while self.probability(high, worst, noisy) < CAUGHT or high < 2:
            low, high = high, 2 * high
        for _ in range(40):
            middle = (low + high) / 2
            caught = self.probability(middle, worst, noisy) >= CAUGHT
            low, high = (low, middle) if caught else (middle, high)
        return high

    def drawn(self, times: float, worst: bool, noisy: bool, draws: int) -> float:
        """Return which part of drawn sums is caught."""
        mean, deviation = self.mean(times, worst), sqrt(self.variance(times, noisy))
        normal = np.random.default_rng(1).standard_normal
        sums = (mean + deviation * normal(len(mean)) for _ in range(draws))
        return sum(bool(self.law.ratios(one, self.sizes).max() > 1) for one in sums) / draws

    def levels(self, noisy: bool) -> float:
        """How many times its own norm a site can send where only the levels bound it."""
        values = self.signals.shape[1]
        noise = values * self.share**2 if noisy else 0.0
        return sqrt(values / (float(np.linalg.norm(self.signals[0])) ** 2 + noise))


def cohort(bank: Bank, kind: str, count: int) -> Cohort:
    """Measure the signals of ``count`` sites at the start of training."""
    batch = max(1, round(0.4 * len(bank.records) / count))
    wanted = {
        "local": ['privacy.noise="local"'],
        "shared": ['privacy.noise="distributed"', "encryption.bits=20"],
        "whole site": [
            'privacy.unit="site"',
            "training.local_steps=10",
            'training.optimizer="adam"',
            "training.learning_rate=0.01",
        ],
    }[kind]
    common = [f"training.batch_size={batch}", f"rounds.min_sites={count}", f"data.sites={count}"]
    config = load_run_config(FOLDER / "run.toml", [*common, *wanted])
    model, mechanism = bank.model, mechanism_of(config)
    method, segments = adapter_of(model), model.manifest.segments
    sizes = [segment.size for segment in segments]
    bounds = np.repeat(mechanism.bounds(segments), sizes)
    norm = config.privacy.clipping_norm
    said = mechanism.announced_noise(1, ())
    announced, signals, share = [], [], 0.0
    for number, site in enumerate(bank.sites(count, 0)):
        units = mechanism.announced_units(site.number_of_units)
        needed = said or mechanism.needed_noise(site.number_of_units, 1, ())
        assert needed is not None
        settings = mechanism.settings(units or site.number_of_units, needed)
        method.place(method.start())
        work, sampling = TrainingAtSite(model, method, site), RandomStream.seeded(number, "poison")
        if kind == "whole site":
            plain = replace(settings, noise_multiplier=None)
            moved = work.train(plain, sampling, sampling).update.astype(np.float64)
            signals.append(moved * min(1.0, norm / float(np.linalg.norm(moved))) / bounds)
            longest, noise = norm, 2 * needed * norm * mechanism.noise_share
        else:
            total, _ = work.gradient_sum(settings, sampling)
            signals.append(-total / settings.expected_batch_size / bounds)
            longest = norm
            noise = needed * norm * mechanism.noise_share / settings.expected_batch_size
        announced.append(units)
        share = noise / float(bounds[0])
    law = mechanism.sum_law(announced, 1, [said or 0.0], len(bounds))
    assert law is not None
    return Cohort(np.array(signals), longest / float(bounds[0]), share, law, sizes)


def norms(bank: Bank, counts: list[int], draws: int) -> list[dict[str, Any]]:
    """Print the table of factors."""
    print("smallest factor of one site's update that the norm test catches with probability .99\n")
    heads = ("noise", "sites", "multiplied", "levels allow", "typical", "worst", "ratio", "drawn")
    print("".join(f"{head:<14}" for head in heads))
    rows = []
    for kind in ("local", "shared", "whole site"):
        for count in counts:
            measured = cohort(bank, kind, count)
            for what, noisy in (("all", True), ("signal", False)):
                row: dict[str, Any] = {"noise": kind, "sites": count, "multiplied": what}
                row["levels"] = measured.levels(noisy)
                found = []
                for name, worst in (("typical", False), ("worst", True)):
                    row[name] = measured.smallest(worst, noisy)
                    found.append(measured.drawn(row[name], worst, noisy, draws))
                row |= {"ratio": row["levels"] / row["typical"], "drawn": min(found)}
                cells = [f"{row[key]:.1f}" for key in ("levels", "typical", "worst", "ratio")]
                told = (kind, count, what, *cells, f"{row['drawn']:.3f}")
                print("".join(f"{cell:<14}" for cell in told), flush=True)
                rows.append(row)
    print("\nratio: what the levels allow over what is caught beside typical records\n")
    return rows


# --- the gate -------------------------------------------------------------------------------


@dataclass(frozen=True)
class End:
    """What a run came to."""

    accuracy: float
    norm: int
    test: int


def train(
    bank: Bank, config: RunConfig, seed: int, flipped: bool, boost: float, tests: bool
) -> End:
    """Train with ten sites, of which the first may poison."""
    model, mechanism = bank.model, mechanism_of(config)
    method, up, config_rounds = adapter_of(model), model.manifest, config.rounds
    sizes = [segment.size for segment in up.segments]
    bounds = mechanism.bounds(up.segments)
    quantiser = Quantiser(list(zip(sizes, bounds, strict=True)), config.encryption.bits)
    optimizer = ServerOptimizer(config_rounds, up)
    sites = bank.sites(SITES, seed, flipped)
    half, rejected = quantiser.top_level // 2, {"norm": 0, "test": 0}
    units = [mechanism.announced_units(site.number_of_units) for site in sites]
    state = RunState("", 0, (), "", method.start())
    state, _ = judge_test(state, measure(bank, state), config_rounds.rollback_rise)
    for number in range(1, config_rounds.count + 1):
        state = replace(state, noise=(*state.noise, 0.0))
        total = np.zeros(up.length, dtype=np.uint64)
        for index, site in enumerate(sites):
            method.place(state.adapter)
            needed = mechanism.needed_noise(site.number_of_units, 1, ())
            work, which = TrainingAtSite(model, method, site), (f"{index}", seed, number)
            quantise = (quantiser.quantise, quantiser.quantise_parts)
            levels = mechanism.contribute(
                SiteRound(work, units[index], needed, *quantise, which)
            ).levels
            if index == 0 and boost != 1:
                moved = np.rint((levels.astype(np.float64) - half) * boost + half)
                levels = np.clip(moved, 0, quantiser.top_level).astype(np.uint64)
            total += levels
        opened = quantiser.dequantise_sum(total, SITES)
        law = mechanism.sum_law(units, number, state.noise, up.length)
        over = law is not None and law.ratios(opened / np.repeat(bounds, sizes), sizes).max() > 1
        adapter = state.adapter
        if tests and over:
            rejected["norm"] += 1
        else:
            adapter = optimizer.apply(adapter, opened / SITES)
        state = replace(state, round=number, adapter=adapter, optimizer=optimizer.state())
        if tests:
            state, reason = judge_test(state, measure(bank, state), config_rounds.rollback_rise)
            rejected["test"] += bool(reason)
            if state.optimizer:
                optimizer.load(state.optimizer)
            else:
                optimizer = ServerOptimizer(config_rounds, up)
    return End(float(measure(bank, state)["accuracy"]), **rejected)


def measure(bank: Bank, state: RunState) -> dict[str, Any]:
    """Evaluate an adapter on the public test file."""
    bank.model.set_adapter(state.adapter)
    return {**evaluate(bank.model, bank.test)}


ARMS: dict[str, tuple[bool, float, bool]] = {
    "honest, tested": (False, 1.0, True),
    "labels flipped": (True, 1.0, False),
    "labels flipped, tested": (True, 1.0, True),
    "flipped, ten times": (True, BOOST, False),
    "flipped, ten times, tested": (True, BOOST, True),
}


def gates(bank: Bank, seeds: list[int], rounds: dict[str, int]) -> dict[str, dict[str, list[End]]]:
    """Print accuracies of runs without noise (Adam at the sites), and with local noise (SGD)."""
    sampled = ["training.sampling_rate=0.1", "training.batch_size=100"]
    plans = {
        "no noise": ("fedavg.toml", ["encryption.bits=16"]),
        "local noise": ("run.toml", [*sampled, "privacy.epsilon=8"]),
    }
    results: dict[str, dict[str, list[End]]] = {}
    for plan, (name, wanted) in plans.items():
        asked = [*wanted, f"rounds.count={rounds[plan]}"]
        results[plan] = {}
        print(f"{plan}, {SITES} sites, {rounds[plan]} rounds, {len(seeds)} seeds")
        for arm, (flipped, boost, tests) in ARMS.items():
            found: list[End] = []
            for seed in seeds:
                config = load_run_config(FOLDER / name, [*asked, f"seed={seed}"])
                found.append(train(bank, config, seed, flipped, boost, tests))
            results[plan][arm] = found
            spread = statistics.stdev(e.accuracy for e in found) if len(found) > 1 else 0.0
            print(
                f"  {arm:<28}accuracy {statistics.fmean(e.accuracy for e in found):.4f} "
                f"±{spread:.4f}   rounds rejected by norm "
                f"{statistics.fmean(e.norm for e in found):.1f}, by test "
                f"{statistics.fmean(e.test for e in found):.1f}",
                flush=True,
            )
        print()
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="few records, sites and rounds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bank = Bank(400 if options.quick else 100_000)
    seeds = [0] if options.quick else [int(seed) for seed in options.seeds.split(",")]
    factors = norms(bank, [3, 10] if options.quick else [3, 10, 100], 20 if options.quick else 200)
    rounds = (
        {"no noise": 2, "local noise": 2} if options.quick else {"no noise": 12, "local noise": 20}
    )
    ends = gates(bank, seeds, rounds)
    if options.json:
        plain = {
            p: {a: [vars(e) for e in es] for a, es in arms.items()} for p, arms in ends.items()
        }
        options.json.write_text(json.dumps({"norms": factors, "gates": plain}, indent=2))


if __name__ == "__main__":
    main()
