"""What privacy costs on BANKING77: pooled, shared noise, local noise, a site alone.

Ten sites, MiniLM features, a linear head. For each seed, split and epsilon the accuracy on the
public test file of

- pooled: all records in one place, without privacy;
- pooled DP: all records in one place, DP-SGD;
- distributed: ten sites, one DP-SGD step a round, each site with its share of the noise;
- local: ten sites, each update private by itself;
- alone: one site with nothing but its own records (mean over the ten).

Every step runs the functions that `fedllm simulate` runs: site settings, batches, clipping,
noise, quantisation, the coordinator's optimiser. Updates are added as integers in the open
instead of under encryption, whose sum is the same integers (tests/federation/test_round.py).

Settings were chosen by accuracy on the test file; the records are public, and no privacy is
claimed for that choice. `--step` measures the time of whole rounds instead: messages, ledger,
masks, encryption and opening for ten sites against the plain step on pooled records. The peer
is our own step without privacy, encryption or a ledger, on as many records; one is taken after
each round, so that a busy machine slows both. Both sides keep the features of frozen layers:
the first round and the first step, which compute them, are not counted in the ratio, and the
ratio of those two is printed beside it.

    python benchmarks/privacy_utility.py --out results.json [--minutes 20]
    python benchmarks/privacy_utility.py --out results.json --step
    python benchmarks/privacy_utility.py --quick

Results are kept in --out after every run, so that a stopped bench goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedllm.adapters import adapter_of
from fedllm.config import RunConfig, load_run_config
from fedllm.data.encode import EncodedDataset
from fedllm.data.partition import split_into_sites
from fedllm.encryption.quantise import Quantiser
from fedllm.federation.site.work import TrainingAtSite
from fedllm.files import write_json
from fedllm.mechanisms import SiteRound, mechanism_of
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.runs.metrics import RoundReport, read_reports
from fedllm.runs.terminal import PlainObserver
from fedllm.tasks import task_of
from fedllm.training.evaluate import evaluate
from fedllm.training.local import train_locally
from fedllm.training.server_optimizer import ServerOptimizer
from fedllm_server.simulation import simulate

CENTRED = 'model.feature_center="label_names"'
EXAMPLE = Path(__file__).parents[1] / "examples" / "bank_intents" / "run.toml"
SPLITS = ("iid", "dirichlet")
EPSILONS = (8.0, 3.0, 1.0)
AIMS = {
    "distributed": {8.0: 0.91, 3.0: 0.89, 1.0: 0.845},
    "local": {8.0: 0.865, 3.0: 0.805, 1.0: 0.70},
}
GAP_TO_POOLED, STEP_RATIO = 0.01, 3.0
# (rounds, sampling rate, optimiser at the coordinator, its learning rate), by noise and epsilon.
PLANS: dict[str, dict[float | None, tuple[int, float, str, float]]] = {
    "pooled": {None: (100, 0.4, "momentum", 4.0)},
    "distributed": {
        8.0: (100, 0.4, "momentum", 2.0),
        3.0: (100, 0.4, "momentum", 1.0),
        1.0: (100, 0.4, "momentum", 0.5),
    },
    "local": {
        8.0: (100, 0.4, "momentum", 1.0),
        3.0: (100, 0.4, "momentum", 0.4),
        1.0: (60, 0.4, "momentum", 0.2),
    },
    "alone": {
        8.0: (100, 0.4, "momentum", 0.2),
        3.0: (60, 0.4, "momentum", 0.1),
        1.0: (60, 0.4, "momentum", 0.02),
    },
}

# What is trained when whole rounds are timed: the number of records, and settings with the same
# expected batch of one site as above, or a smaller one for adapters.
STEPS = {
    "LoRA, 2 layers": (
        1300,
        [
            "lora.rank=8",
            "lora.last_layers=2",
            "training.sampling_rate=0.49",
            "training.batch_size=64",
        ],
    ),
    "head alone": (
        4000,
        ["lora.rank=0", "training.sampling_rate=0.995", "training.batch_size=398"],
    ),
}


@dataclass(frozen=True)
class Case:
    """One training run of the table."""

    kind: str
    split: str
    epsilon: float | None
    seed: int

    @property
    def key(self) -> str:
        """Name of the case in the file of results."""
        return f"{self.kind}/{self.split}/{self.epsilon}/{self.seed}"


def cases(seeds: list[int]) -> Iterator[Case]:
    """Yield all runs; pooled ones do not depend on the split."""
    for seed in seeds:
        yield Case("pooled", "-", None, seed)
        for epsilon in EPSILONS:
            yield Case("pooled DP", "-", epsilon, seed)
            for split in SPLITS:
                for kind in ("distributed", "local", "alone"):
                    yield Case(kind, split, epsilon, seed)


class Clock(PlainObserver):
    """Says nothing; takes the CPU time of each round, children included, and then a plain step."""

    def __init__(self, plain_step: Callable[[int], None]) -> None:
        super().__init__()
        self._plain_step = plain_step
        self._began_s = sum(os.times()[:4])
        self.round_cpu_s: list[float] = []
        self.plain_s: list[float] = []
        self.plain_cpu_s: list[float] = []

    def finished_round(self, report: RoundReport) -> None:
        """Note the round's time, and take and time a plain step; round 0 is an evaluation."""
        if report.round == 0:
            self._began_s = sum(os.times()[:4])
            return
        self.round_cpu_s.append(sum(os.times()[:4]) - self._began_s)
        started, cpu_started = time.perf_counter(), time.process_time()
        self._plain_step(report.round)
        self.plain_s.append(time.perf_counter() - started)
        self.plain_cpu_s.append(time.process_time() - cpu_started)
        self._began_s = sum(os.times()[:4])

    def _print(self, text: str) -> None:
        pass


class Bench:
    """The model and the records, read and encoded once; features are kept by the model."""

    def __init__(self) -> None:
        self._config = load_run_config(EXAMPLE, [CENTRED])
        data, self._task = self._config.data, task_of(self._config)
        if data.test is None:
            raise SystemExit(f"{EXAMPLE} names no test file")
        self._records = self._task.read(data.train, data)
        test = self._task.read_public(data)
        self.model: SharedModel = self._task.load_model(self._config, self._task.labels(data, test))
        self._test = self._encode(test)
        self._pooled = self._encode(self._records)
        self._split: tuple[str, int, list[EncodedDataset]] = ("", -1, [])

    def _encode(self, records: list[Any]) -> EncodedDataset:
        length = self._config.model.max_length
        return self._task.encode(records, self.model.tokenizer, length, self.model.labels)

    def config(self, case: Case) -> RunConfig:
        """Return the run configuration of a case."""
        plan = PLANS["distributed" if case.kind == "pooled DP" else case.kind][case.epsilon]
        rounds, rate, optimizer, learning_rate = plan
        sites = 1 if case.kind in ("pooled", "pooled DP", "alone") else self._config.data.sites
        records = len(self._records) if case.kind.startswith("pooled") else len(self._records) / 10
        overrides = [
            CENTRED,
            "training.microbatch_size=1024",
            f"rounds.count={rounds}",
            f"rounds.min_sites={max(2, sites)}",
            f'rounds.optimizer="{optimizer}"',
            f"rounds.learning_rate={learning_rate}",
            f"training.sampling_rate={rate}",
            f"training.batch_size={round(rate * records)}",
            f"privacy.epsilon={case.epsilon or 'none'}",
            f'privacy.noise="{"distributed" if case.kind == "distributed" else "local"}"',
        ]
        return load_run_config(EXAMPLE, overrides)

    def sites(self, case: Case) -> list[EncodedDataset]:
        """Return the records of each site."""
        if case.kind.startswith("pooled"):
            return [self._pooled]
        if self._split[:2] != (case.split, case.seed):
            data = self._config.data.model_copy(update={"partition": case.split, "alpha": 0.5})
            parts = split_into_sites(self._records, data, case.seed)
            place = {id(record): row for row, record in enumerate(self._records)}
            sites = [self._encode(parts[name]) for name in sorted(parts)]
            self.model.prefix.attach(self._pooled, np.arange(1), self._pooled.batch(np.arange(1)))
            for site, name in zip(sites, sorted(parts), strict=True):
                rows = np.array([place[id(record)] for record in parts[name]])
                self.model.prefix.share(self._pooled, site, rows)
            self._split = (case.split, case.seed, sites)
        return self._split[2]

    def run(self, case: Case) -> dict[str, Any]:
        """Train a case and return its accuracy and what it took."""
        started = time.process_time()
        sites = self.sites(case)
        groups = [[site] for site in sites] if case.kind == "alone" else [sites]
        accuracies = [self._train(self.config(case), group) for group in groups]
        return {
            "accuracy": statistics.fmean(accuracies),
            "of_each": accuracies,
            "cpu_s": time.process_time() - started,
        }

    def _train(self, config: RunConfig, sites: list[EncodedDataset]) -> float:
        model, method = self.model, adapter_of(self.model)
        bounds = mechanism_of(config).bounds(model.manifest.segments)
        sizes = [segment.size for segment in model.manifest.segments]
        quantiser = Quantiser(list(zip(sizes, bounds, strict=True)), config.encryption.bits)
        optimizer = ServerOptimizer(config.rounds, model.manifest)
        adapter = model.initial
        for number in range(1, config.rounds.count + 1):
            total = np.zeros(model.manifest.length, dtype=np.uint64)
            for site in sites:
                method.place(adapter)
                asked = SiteRound(
                    TrainingAtSite(model, method, site),
                    mechanism_of(config).announced_units(site.number_of_units),
                    noise(config, site),
                    quantiser.quantise,
                    quantiser.quantise_parts,
                    ("site", number),
                )
                total += mechanism_of(config).contribute(asked).levels
            mean = quantiser.dequantise_sum(total, len(sites)) / len(sites)
            adapter = optimizer.apply(adapter, mean)
        model.set_adapter(adapter)
        accuracy = evaluate(model, self._test)["accuracy"]
        model.set_adapter(model.initial)
        return accuracy

    def step(
        self, rounds: int, steps: dict[str, tuple[int, list[str]]]
    ) -> dict[str, dict[str, float]]:
        """Time whole rounds of ten sites, and the plain step on all records in one place."""
        return {name: self._step(rounds, *step) for name, step in steps.items()}

    def _step(self, rounds: int, count: int, wanted: list[str]) -> dict[str, float]:
        common = [
            CENTRED,
            *wanted,
            f"rounds.count={rounds}",
            f"rounds.evaluate_every={rounds}",
            "data.test_limit=100",
            f"engine.threads={torch.get_num_threads()}",
        ]
        data = self._config.data
        plain = load_run_config(EXAMPLE, [*common, "privacy.epsilon=none"])
        model = self._task.load_model(plain, self.model.labels)
        records = self._records[:count]
        pooled = self._encode(records)
        settings = replace(
            mechanism_of(plain).settings(len(pooled), None),
            expected_batch_size=plain.training.batch_size * plain.data.sites,
        )

        def plain_step(number: int) -> None:
            stream = RandomStream.seeded(number, "step")
            train_locally(model, pooled, settings, stream, stream)

        clock = Clock(plain_step)
        with tempfile.TemporaryDirectory() as folder:
            train = Path(folder) / "train.jsonl"
            rows = [{data.text: r.values["text"], data.label: r.values["label"]} for r in records]
            train.write_text("".join(json.dumps(row) + "\n" for row in rows))
            where = f'data.train="{train}"'
            config = load_run_config(EXAMPLE, [*common, where, 'privacy.noise="distributed"'])
            simulate(config, Path(folder) / "run", observers=[clock])
            reports = read_reports(Path(folder) / "run" / "metrics.jsonl")
        # The first round also computes the frozen layers of every record, the last evaluates.
        wall = [r.seconds["total"] - r.seconds["evaluate"] for r in reports if r.round > 1]
        rounds_cpu, plain_cpu = clock.round_cpu_s, clock.plain_cpu_s
        figures = {"round_s": wall, "round_cpu_s": rounds_cpu[1:-1]}
        figures |= {"plain_s": clock.plain_s[1:], "plain_cpu_s": plain_cpu[1:]}
        result = {name: statistics.median(values) for name, values in figures.items()}
        pairs = zip(rounds_cpu[1:-1], plain_cpu[1:-1], strict=True)
        result["ratio"] = statistics.median(a / b for a, b in pairs)
        result["first_ratio"] = rounds_cpu[0] / plain_cpu[0]
        return result


def noise(config: RunConfig, site: EncodedDataset) -> float | None:
    """Return the noise multiplier of every step."""
    return mechanism_of(config).needed_noise(site.number_of_units, 1, ())


def report(results: dict[str, Any]) -> None:
    """Print the table, and each aim with whether it is met."""

    def found(kind: str, split: str, epsilon: float | None) -> list[float]:
        start = f"{kind}/{split}/{epsilon}/"
        return [value["accuracy"] for key, value in results.items() if key.startswith(start)]

    def shown(values: list[float]) -> str:
        if not values:
            return "-"
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.fmean(values):.4f} ±{spread:.4f}"

    print(f"pooled, no privacy: {shown(found('pooled', '-', None))}")
    print("mean ± standard deviation over seeds\n")
    print(f"{'epsilon':<8}{'split':<11}", end="")
    print("".join(f"{kind:<16}" for kind in ("pooled DP", "distributed", "local", "alone")))
    for epsilon in EPSILONS:
        for split in SPLITS:
            row = [found("pooled DP", "-", epsilon)]
            row += [found(kind, split, epsilon) for kind in ("distributed", "local", "alone")]
            print(f"{epsilon:<8g}{split:<11}" + "".join(f"{shown(cell):<16}" for cell in row))
    print()
    for epsilon in EPSILONS:
        for split in SPLITS:
            pooled = found("pooled DP", "-", epsilon)
            shared = found("distributed", split, epsilon)
            if pooled and shared:
                gap = statistics.fmean(pooled) - statistics.fmean(shared)
                verdict(f"epsilon {epsilon:g} {split}: below pooled DP", gap, GAP_TO_POOLED, True)
            for kind, aims in AIMS.items():
                if values := found(kind, split, epsilon):
                    mean = statistics.fmean(values)
                    verdict(f"epsilon {epsilon:g} {split}: {kind}", mean, aims[epsilon], False)
    if "step" in results:
        print()
        for name, step in results["step"].items():
            print(
                f"{name}: whole round {step['round_s']:.3f} s ({step['round_cpu_s']:.3f} of CPU), "
                f"plain step {step['plain_s']:.3f} s ({step['plain_cpu_s']:.3f} of CPU)"
            )
            verdict(f"{name}: CPU of round over plain step", step["ratio"], STEP_RATIO, True)
            if "first_ratio" in step:
                print(
                    f"{'the first of each, frozen layers included':<44}{step['first_ratio']:8.4f}"
                )


def verdict(what: str, value: float, aim: float, at_most: bool) -> None:
    """Print one figure beside its aim."""
    met = value <= aim if at_most else value >= aim
    sign = "at most" if at_most else "at least"
    print(f"{what:<44}{value:8.4f}  aim {sign} {aim:g}: {'met' if met else 'MISSED'}")


def main() -> None:
    """Run what is missing in the file of results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("privacy_utility.json"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--minutes", type=float, default=60.0, help="start no run after that")
    parser.add_argument("--step", action="store_true", help="time whole rounds instead")
    parser.add_argument("--rounds", type=int, default=6, help="of --step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="three rounds of the head alone")
    arguments = parser.parse_args()
    if arguments.rounds < 3:
        parser.error("--rounds must be at least 3: the first and the last are not counted")
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        name = "head alone"
        report({"step": {name: Bench().step(3, {name: (200, STEPS[name][1])})[name]}})
        return
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.step:
        results["step"] = Bench().step(arguments.rounds, STEPS)
        write_json(arguments.out, results)
        report(results)
        return
    missing = [case for case in cases(seeds) if case.key not in results]
    until = time.monotonic() + 60 * arguments.minutes
    bench = Bench() if missing else None
    for case in missing:
        if bench is None or time.monotonic() > until:
            print("stopped; start again to go on")
            break
        results[case.key] = bench.run(case)
        write_json(arguments.out, results)
        print(f"{case.key}: {results[case.key]['accuracy']:.4f}", flush=True)
    report(results)


if __name__ == "__main__":
    main()
