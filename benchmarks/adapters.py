"""Adapter methods side by side: how good, how many bytes, how long, at each epsilon.

The head alone and every method of `lora.method`, on BANKING77 with MiniLM (accuracy) and on MedQuAD
with a small causal model (loss of a token), each site's records dealt out evenly or unevenly
(Dirichlet 0.5 over labels; MedQuAD by publisher), with shared noise and without privacy.

- *Settings are chosen on a part of train*, by runs that do not train on it, in the same way for
  every method: first the coordinator's step for the head, with the head alone; then, with that, the
  step for the adapter, out of the same grid. `GRIDS` has them.
- *Results are of the test file*, mean of the seeds; differences come with paired bootstrap
  intervals (95%) over seeds and test records.
- Seconds are of this bench, which computes a batch's gradients together. The product computes each
  by itself; what one record's step takes there is measured too, and the table has its ratio.

Every finished run is a line of `--out DIR/runs.jsonl`; what is there is not run again, so that a
table may be made today in part, and the rest later.

    python benchmarks/adapters.py --out DIR [--minutes 60] [--epsilons 8,3] [--splits iid]
    python benchmarks/adapters.py --out DIR --data medquad [--model CHECKPOINT]
    python benchmarks/adapters.py --out DIR --table [--write-docs]
    python benchmarks/adapters.py --quick
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from adapters_run import CHOOSING_SEED, SETUPS, Bench, Case, Setting, Setup
from adapters_table import report, write_docs

from fedllm.config import AdapterKind
from fedllm.files import append_line

# Ranks that make sense: a core of rank 16 has fewer values than one row of A.
RANKS: dict[str, tuple[int, ...]] = {"core": (16,)}
USUAL_RANKS = (8,)


@dataclass(frozen=True)
class Grid:
    """What is tried, the same for all methods.

    Attributes
    ----------
    short, long : (int, float)
        Rounds and sampling rate of all methods; and of the head alone, which takes a tenth of the
        time, for as long as an adapter takes.
    heads, adapters : dict of epsilon to tuple of float
        The coordinator's steps, of Adam.
    """

    short: tuple[int, float]
    long: tuple[int, float]
    heads: dict[float | None, tuple[float, ...]]
    adapters: dict[float | None, tuple[float, ...]]


def _steps(*values: float) -> dict[float | None, tuple[float, ...]]:
    # Adam's steps are in units of what it sees: one grid does for every epsilon.
    return dict.fromkeys((None, 8.0, 3.0, 1.0), values)


GRIDS = {
    "banking77": Grid((12, 0.4), (100, 0.4), _steps(0.04, 0.08), _steps(0.0025, 0.01)),
    "medquad": Grid((12, 0.1), (12, 0.1), {}, _steps(0.0025, 0.01)),
}
# Step of the long runs of the head alone, over that of the short ones.
LONG_STEP = 1 / 3


class Store:
    """The finished runs of a folder, one line each."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "runs.jsonl"
        self.lines: dict[str, dict[str, Any]] = {}
        if self._path.exists():
            for text in self._path.read_text().splitlines():
                if not text:
                    continue
                line = json.loads(text)
                self.lines[line["key"]] = line

    def add(self, case: Case, result: dict[str, Any]) -> None:
        """Keep a finished run."""
        line = {"key": case.key, "case": asdict(case), **result}
        self.lines[case.key] = line
        append_line(self._path, json.dumps(line))

    def best(self, cases: list[Case], higher: bool) -> Case | None:
        """Return the best of some runs; None if one of them is missing."""
        if not all(case.key in self.lines for case in cases):
            return None
        sign = 1 if higher else -1
        return max(cases, key=lambda case: sign * self.lines[case.key]["metric"])


def methods() -> list[tuple[str, int]]:
    """Return every method with its ranks, the head alone first."""
    kinds = [
        (kind, rank) for kind in get_args(AdapterKind) for rank in RANKS.get(kind, USUAL_RANKS)
    ]
    return [("head", 0), *kinds]


class Plan:
    """Which runs are wanted, in which order; what is chosen depends on what is finished."""

    def __init__(self, setup: Setup, store: Store, arguments: argparse.Namespace) -> None:
        self._setup, self._store, self._arguments = setup, store, arguments
        self._grid = GRIDS[setup.name]

    def _choices(self, method: str, rank: int, epsilon: float | None, long: bool) -> list[Case]:
        """Return the runs out of which a method's setting is chosen; empty before the head's is."""
        rounds, rate = self._grid.long if long else self._grid.short
        heads = self._grid.heads.get(epsilon, (1.0,))
        steps = self._grid.adapters[epsilon]
        if method == "head":
            pairs = [(head * (LONG_STEP if long else 1.0), 0.0) for head in heads]
        elif self._grid.heads:
            chosen = self._store.best(self._choices("head", 0, epsilon, False), self._setup.higher)
            pairs = [(chosen.setting.head, step) for step in steps] if chosen else []
        else:
            pairs = [(step, step) for step in steps]
        return [
            Case(
                self._setup.name, "choose", method, rank, "iid", epsilon, CHOOSING_SEED,
                Setting(rounds, rate, head, adapter), self._arguments.records,
            )
            for head, adapter in dict.fromkeys(pairs)
        ]  # fmt: skip

    def _rows(self) -> Iterator[tuple[str, int, float | None, bool]]:
        wanted = self._arguments
        for epsilon in wanted.epsilons:
            for method, rank in wanted.methods:
                if method != "head":
                    yield method, rank, epsilon, False
                elif self._grid.heads:
                    yield method, rank, epsilon, False
                    yield method, rank, epsilon, True

    def missing(self) -> Iterator[Case]:
        """Yield what is to be run next, as long as there is anything."""
        done = self._store.lines
        rows = list(self._rows())
        # What heads come to is needed first, and takes least.
        for part in ([row for row in rows if (row[0] == "head") is head] for head in (True, False)):
            for row in part:
                yield from (case for case in self._choices(*row) if case.key not in done)
            # One seed of all methods, then the next: a table in part compares all of them.
            tests = [case for row in part for case in self.tests(*row)]
            for case in sorted(tests, key=lambda case: case.seed):
                if case.key not in done:
                    yield case

    def tests(self, method: str, rank: int, epsilon: float | None, long: bool) -> list[Case]:
        """Return a method's runs on the test file; empty before its setting is chosen."""
        choices = self._choices(method, rank, epsilon, long)
        chosen = self._store.best(choices, self._setup.higher) if choices else None
        if chosen is None:
            return []
        return [
            replace(chosen, stage="test", split=split, seed=seed)
            for split in self._arguments.splits or self._setup.splits
            for seed in self._arguments.seeds
        ]


def measure_costs(bench: Bench, store: Store, wanted: list[tuple[str, int]]) -> None:
    """Keep what the product takes for one record's step, by method."""
    for method, rank in wanted:
        setting = Setting(*GRIDS[bench.setup.name].short, 1.0, 1.0)
        case = Case(bench.setup.name, "cost", method, rank, "iid", 8.0, 0, setting)
        if case.key in store.lines or (method == "head" and bench.setup.name != "banking77"):
            continue
        off = bench.check(case)
        if off > 1e-2:
            raise SystemExit(f"{method}: the sum in batches is not the product's ({off:.1e})")
        store.add(case, {"metric": 0.0, "off": off, "record_cpu_s": bench.product_cost(case)})


def numbers(text: str) -> list[float | None]:
    """Read a list of epsilons."""
    return [None if part == "none" else float(part) for part in text.split(",")]


def main() -> None:
    """Run what is missing, or make the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("adapters"))
    parser.add_argument("--data", choices=SETUPS, default="banking77")
    parser.add_argument("--model", help="folder of another base model (MedQuAD)")
    parser.add_argument("--minutes", type=float, default=600.0, help="start no run after that")
    parser.add_argument("--epsilons", type=numbers, default=[8.0, 3.0, 1.0, None])
    parser.add_argument("--splits", type=lambda text: tuple(text.split(",")), default=())
    parser.add_argument("--seeds", type=lambda t: [int(s) for s in t.split(",")], default=[0, 1, 2])
    parser.add_argument("--records", type=int, default=0, help="so many drawn; all when left out")
    parser.add_argument("--methods", help="such as head,ffa,core; all when left out")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument(
        "--write-docs", action="store_true", help="into docs/recipes.md, with --table"
    )
    parser.add_argument("--quick", action="store_true", help="two methods, few records, one seed")
    arguments = parser.parse_args()
    kept = arguments.methods.split(",") if arguments.methods else [name for name, _ in methods()]
    arguments.methods = [pair for pair in methods() if pair[0] in kept]
    torch.set_num_threads(1)
    if arguments.quick:
        quick(arguments)
        return
    store = Store(arguments.out)
    if not arguments.table:
        work(Bench(SETUPS[arguments.data], arguments.model), store, arguments)
    if arguments.write_docs:
        write_docs(store.lines)
    else:
        print(report(store.lines))


def work(bench: Bench, store: Store, arguments: argparse.Namespace) -> None:
    """Run what is missing."""
    until = time.monotonic() + 60 * arguments.minutes
    plan = Plan(bench.setup, store, arguments)
    measure_costs(bench, store, arguments.methods)
    # Products of matrices in bfloat16 where the processor has them: far below the noise.
    torch.set_float32_matmul_precision("medium")
    for case in plan.missing():
        if time.monotonic() > until:
            print("stopped; start again to go on")
            return
        result = bench.run(case)
        store.add(case, result)
        print(f"{case.key}: {result['metric']:.4f} ({result['cpu_s']:.0f} s)", flush=True)


def quick(arguments: argparse.Namespace) -> None:
    """Run the head alone and one method on few records, and print their table."""
    GRIDS["banking77"] = Grid((2, 0.4), (3, 0.4), {8.0: (0.08,)}, {8.0: (0.01,)})
    arguments.methods = [pair for pair in methods() if pair[0] in ("head", "ffa")]
    arguments.epsilons, arguments.seeds, arguments.splits = [8.0], [0, 1], ("iid",)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        work(Bench(SETUPS["banking77"], limit=200), store, arguments)
        print(report(store.lines))


if __name__ == "__main__":
    main()
