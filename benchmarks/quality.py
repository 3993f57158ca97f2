"""How good a run will be, as a law of its noise: fitted on runs that this program makes.

The share of what training without privacy gains that a private run keeps depends on little but the
noise of a whole run over its signal: `u = noise_multiplier / (rate * records * sqrt(rounds))`,
records of all sites together, times the root of the sites where each adds noise of its own. The law
is `lost = 1 / (1 + (half / u) ** power)`: half of the gain is lost at `half`.

Runs are BANKING77 with the head alone and the defaults' steps: several numbers of records, epsilons
and rounds. Gains are from the run's own start to the best run without privacy on as many records,
which is settled by the same program. A third of the runs, drawn by the number of the run, is held
out, and its error printed; the law that is written is fitted on all.

    python benchmarks/quality.py --out DIR [--minutes 30]
    python benchmarks/quality.py --out DIR --fit [--write]
    python benchmarks/quality.py --quick
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adapters import Store
from adapters_run import BANK, Bench, Case, Setting
from adapters_table import write_block

from fedllm.config.recipes import coordinator_step
from fedllm.files import write_json
from fedllm.mechanisms.quality import DATA, Law

RECORDS = (500, 1200, 3000)
EPSILONS = (None, 0.5, 1.0, 3.0, 8.0)
ROUNDS = (25, 100)
RATE = 0.4


def cases(records: tuple[int, ...] = RECORDS, rounds: tuple[int, ...] = ROUNDS) -> Iterator[Case]:
    """Yield all runs, the untrained head first."""
    for count in records:
        for length in rounds:
            for epsilon in EPSILONS:
                step = coordinator_step(length, epsilon, count)
                setting = Setting(length, RATE, step, 0.0)
                yield Case("banking77", "test", "head", 0, "iid", epsilon, 0, setting, count)


def points(lines: dict[str, dict[str, Any]], start: float) -> list[dict[str, float]]:
    """Return what each private run lost of the gain, beside its noise."""
    best: dict[int, float] = {}
    for line in lines.values():
        if line["case"]["epsilon"] is None:
            count = line["case"]["records"]
            best[count] = max(best.get(count, 0.0), line["metric"])
    found = []
    for line in lines.values():
        case = line["case"]
        if case["epsilon"] is None or case["records"] not in best:
            continue
        setting, count = case["setting"], case["records"]
        noise = line["noise"] / (setting["rate"] * count * sqrt(setting["rounds"]))
        lost = (best[count] - line["metric"]) / (best[count] - start)
        found.append(
            {"noise": noise, "lost": min(max(lost, 0.002), 0.998), "records": count}
            | {"epsilon": case["epsilon"], "rounds": setting["rounds"]}
        )
    return found


def fit(found: list[dict[str, float]]) -> tuple[float, float]:
    """Return `half` and `power`, by least squares of the lost share itself."""
    noise = np.log([point["noise"] for point in found])
    lost = np.array([point["lost"] for point in found])
    # A straight line in the log-odds to begin with, and then Gauss and Newton on the shares.
    power, offset = np.polyfit(noise, np.log(lost / (1 - lost)), 1)
    for _ in range(50):
        share = 1 / (1 + np.exp(-(power * noise + offset)))
        slope = share * (1 - share)
        jacobian = np.stack([slope * noise, slope], axis=1)
        change, *_ = np.linalg.lstsq(jacobian, lost - share, rcond=None)
        power, offset = power + change[0], offset + change[1]
    return float(np.exp(-offset / power)), float(power)


def judged(found: list[dict[str, float]]) -> list[float]:
    """Return the errors of the lost share on a third of the runs that a fit has not seen."""
    held = [i for i in range(len(found)) if i % 3 == 1]
    half, power = fit([point for i, point in enumerate(found) if i not in held])
    law = Law(half, power, 0.0, 0, "", "")
    return [law.lost(found[i]["noise"]) - found[i]["lost"] for i in held]


def report(lines: dict[str, dict[str, Any]], start: float, write: bool) -> str:
    """Fit the law, say how well it fits, and write it where it is asked for."""
    found = points(lines, start)
    half, power = fit(found)
    law = Law(half, power, 0.0, 0, "", "")
    residuals = [law.lost(point["noise"]) - point["lost"] for point in found]
    held = judged(found)
    spread = _root_mean_square(held)
    if write:
        write_json(
            DATA,
            {
                "half": round(half, 8),
                "power": round(power, 4),
                # Root of the mean square of what the held out runs, or all, are off by; the larger.
                "error": round(max(spread, _root_mean_square(residuals)), 4),
                "runs": len(found),
                "task": "classification",
                "source": "benchmarks/quality.py: BANKING77, MiniLM, the head alone, 500 to 3,000 "
                "records at ten sites, epsilon 0.5 to 8, 25 and 100 rounds",
                "start": round(start, 4),
                "best": {
                    str(count): round(
                        max(
                            line["metric"]
                            for line in lines.values()
                            if line["case"]["records"] == count and line["case"]["epsilon"] is None
                        ),
                        4,
                    )
                    for count in sorted({int(point["records"]) for point in found})
                },
                "residuals": [round(error, 4) for error in residuals],
            },
        )
    told = (
        f"{len(found)} runs: half of the gain is lost at noise {half:.3g}, power {power:.3f}\n"
        f"residual of the lost share, root of the mean square: "
        f"{_root_mean_square(residuals):.4f}\n"
        f"on the third that is held out: {spread:.4f}, largest {max(map(abs, held)):.4f}; "
        f"ratio to a law that always says the mean: "
        f"{spread / float(np.std([point['lost'] for point in found])):.2f}"
    )
    if write:
        write_block("quality: made by benchmarks/quality.py", _page(told, law, spread, found))
    return told


def _root_mean_square(errors: list[float]) -> float:
    return sqrt(sum(error**2 for error in errors) / len(errors))


def _page(told: str, law: Law, spread: float, found: list[dict[str, float]]) -> str:
    """Return what the page of recipes says of the law."""
    rows = [
        f"| {point['records']:.0f} | {point['epsilon']:g} | {point['rounds']:.0f} | "
        f"{point['noise']:.2g} | {1 - point['lost']:.0%} | {1 - law.lost(point['noise']):.0%} |"
        for point in found
    ]
    return "\n".join(
        [
            f"{told.splitlines()[0]}. On the third of the runs that the fit had not seen, the kept "
            f"share was off by {spread:.3f} (root of the mean square).",
            "",
            "| records, all sites | epsilon | rounds | noise | kept | by the law |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def untrained(bench: Bench, store: Store, rounds: int) -> float:
    """Return the accuracy before training, kept in the store."""
    case = Case("banking77", "start", "head", 0, "iid", None, 0, Setting(rounds, RATE, 1.0, 0.0))
    if case.key not in store.lines:
        store.add(case, {"metric": bench.untrained(case)})
    return float(store.lines[case.key]["metric"])


def main() -> None:
    """Make what runs are missing, and fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("quality"))
    parser.add_argument("--minutes", type=float, default=600.0, help="start no run after that")
    parser.add_argument("--fit", action="store_true", help="run nothing")
    parser.add_argument("--write", action="store_true", help=f"write {DATA.name} of the package")
    parser.add_argument("--quick", action="store_true", help="few records and rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            store, bench = Store(Path(folder)), Bench(BANK, limit=200)
            wanted = list(cases((100, 200), (2,)))
            run(bench, store, wanted, float("inf"))
            print(report(*_told(store), write=False))
        return
    store = Store(arguments.out)
    if not arguments.fit:
        until = time.monotonic() + 60 * arguments.minutes
        run(Bench(BANK), store, list(cases()), until)
    print(report(*_told(store), write=arguments.write))


def run(bench: Bench, store: Store, wanted: list[Case], until: float) -> None:
    """Run what is missing."""
    untrained(bench, store, 1)
    for case in wanted:
        if case.key in store.lines:
            continue
        if time.monotonic() > until:
            print("stopped; start again to go on")
            return
        result = bench.run(case)
        store.add(case, result)
        print(f"{case.key}: {result['metric']:.4f} ({result['cpu_s']:.0f} s)", flush=True)


def _told(store: Store) -> tuple[dict[str, dict[str, Any]], float]:
    lines = {k: line for k, line in store.lines.items() if line["case"]["stage"] == "test"}
    (start,) = (v["metric"] for v in store.lines.values() if v["case"]["stage"] == "start")
    return lines, start


if __name__ == "__main__":
    main()
