"""Draw mutants, run the tests that could notice each, name the survivors: `make mutants`."""

from __future__ import annotations

import argparse
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import tomllib
from pathlib import Path
from typing import Any

from mutants import running
from mutants.drawing import Mutant, constant_of, mutants_of

PATHS = (
    "fedllm/federation",
    "fedllm/privacy",
    "fedllm/identity",
    "server/fedllm_server",
    "fedllm/canonical.py",
    "fedllm/mechanisms",
)
TESTS = (
    "tests/test_canonical.py",
    "tests/test_limits.py",
    "tests/privacy",
    "tests/mechanisms",
    "tests/identity",
    "tests/federation",
    "tests/clients",
    "tests/server",
    "tests/attacks",
    "tests/golden",
    "tests/audit/ledgers",
    "tests/commands",
)
# They read the sources, so that no line that they execute says which mutants they notice.
READERS = ("tests/test_errors.py", "tests/test_architecture.py")
# How much more time the second pass has than the first.
LONGER = 6
EQUIVALENTS = Path(__file__).with_name("equivalents.toml")


def main(arguments: list[str] | None = None) -> int:
    """Run as the command line says; 1 if a mutant survived that nobody has explained."""
    options = _parser().parse_args(arguments)
    if options.worker is not None:
        return _work(options.worker, options.preload)
    root = options.root.resolve()
    drawn = draw(root, options.paths, options.seed, options.count)
    cache = root / ".mutants" / "map.jsonl"
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Path(folder) / str(number) for number in range(options.jobs)]
        for copy in copies:
            running.copy_tree(root, copy)
        if options.map_again or not cache.exists():
            cache.parent.mkdir(exist_ok=True)
            running.make_map(copies[0], cache, options.paths, options.tests, options.limit_s)
        tests = running.read_map(cache)
        if not tests:
            print("no test passed without a mutant; nothing to run", file=sys.stderr)
            return 2
        outcomes = _two_passes(copies, drawn, tests, options)
    report = describe(root, drawn, outcomes, options.seed, options.equivalents)
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(json.dumps(report, indent=1) + "\n")
    print(tell(report))
    return 1 if report["survivors"] else 0


def draw(root: Path, paths: list[str], seed: int, count: int) -> list[Mutant]:
    """Draw ``count`` mutants of all that the files offer, the same for the same seed."""
    files = [
        file
        for path in paths
        for file in ([root / path] if path.endswith(".py") else sorted((root / path).rglob("*.py")))
    ]
    offered = [
        mutant
        for file in files
        for mutant in mutants_of(str(file.relative_to(root)), file.read_bytes())
    ]
    return random.Random(seed).sample(offered, min(count, len(offered)))


def describe(
    root: Path,
    drawn: list[Mutant],
    outcomes: list[str],
    seed: int,
    equivalents: Path,
) -> dict[str, Any]:
    """The report: how many were drawn and killed, and what became of the others.

    A mutant whose tests ran into the time limit is undecided: the fault may make them endless,
    or the machine may be busy.
    """
    known = tomllib.loads(equivalents.read_text()) if equivalents.exists() else {}
    reasons = {
        (entry["path"], entry["diff"].strip("\n")): entry["reason"]
        for entry in known.get("mutant", ())
    }
    constants = {
        (entry["path"], entry["name"]): entry["reason"] for entry in known.get("constant", ())
    }
    survivors, explained, undecided = [], [], []
    for mutant, outcome in zip(drawn, outcomes, strict=True):
        if outcome == running.KILLED:
            continue
        source = (root / mutant.path).read_bytes()
        diff = mutant.diff(source)
        entry = {"place": f"{mutant.path}:{mutant.first_line}", "kind": mutant.kind, "diff": diff}
        entry["outcome"] = outcome
        constant = (mutant.path, constant_of(mutant, source))
        reason = reasons.get((mutant.path, diff)) or constants.get(constant)
        if reason is not None:
            explained.append(entry | {"reason": reason})
        elif outcome in (running.SURVIVED, running.UNTESTED):
            survivors.append(entry)
        else:
            undecided.append(entry)
    return {
        "seed": seed,
        "drawn": len(drawn),
        "killed": outcomes.count(running.KILLED),
        "equivalent": explained,
        "survivors": survivors,
        "undecided": undecided,
    }


def tell(report: dict[str, Any]) -> str:
    """The report as text, survivors first."""
    lines = []
    for entry in [*report["undecided"], *report["survivors"]]:
        lines += [f"{entry['place']} {entry['outcome']} ({entry['kind']})", entry["diff"], ""]
    judged = report["drawn"] - len(report["equivalent"]) - len(report["undecided"])
    share = report["killed"] / judged if judged else 1.0
    lines.append(
        f"seed {report['seed']}: {report['drawn']} drawn, {report['killed']} killed, "
        f"{len(report['survivors'])} survived, {len(report['undecided'])} undecided, "
        f"{len(report['equivalent'])} equivalent: {share:.1%} killed"
    )
    return "\n".join(lines)


def _two_passes(
    copies: list[Path],
    drawn: list[Mutant],
    tests: list[running.CoveredTest],
    options: argparse.Namespace,
) -> list[str]:
    """Outcomes of the quickest tests; what had too little time gets more, survivors more tests."""
    first, second = [], []
    for mutant in drawn:
        covering = running.tests_for(mutant, copies[0], tests)
        quick = running.within(covering, options.budget_s)
        more = running.within(covering[len(quick) :], options.budget_s * LONGER)
        names = [test.name for test in quick]
        readers = [name for name in READERS if (copies[0] / name).exists()]
        task: dict[str, Any] = {"mutant": vars(mutant), "limit_s": options.limit_s}
        first.append(task | {"tests": names + readers if names else []})
        second.append(
            task | {"tests": [test.name for test in more], "limit_s": options.limit_s * LONGER}
        )
    outcomes = _share_out(copies, first, options.preload)

    def repeat(outcome: str, tasks: list[dict[str, Any]], copies: list[Path]) -> None:
        numbers = [n for n, end in enumerate(outcomes) if end == outcome and tasks[n]["tests"]]
        ended = _share_out(copies, [tasks[number] for number in numbers], options.preload)
        for number, end in zip(numbers, ended, strict=True):
            outcomes[number] = end

    longer = options.limit_s * LONGER
    repeat(running.TIMED_OUT, [task | {"limit_s": longer} for task in first], copies[:1])
    # Tests that never end fail, at the latest by a time limit of their own.
    outcomes = [running.KILLED if end == running.TIMED_OUT else end for end in outcomes]
    repeat(running.SURVIVED, second, copies)
    return outcomes


def _share_out(copies: list[Path], tasks: list[dict[str, Any]], preload: list[str]) -> list[str]:
    """Outcomes of all tasks, from one process for each copy."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(len(tasks)):
        waiting.put(number)
    outcomes = [""] * len(tasks)

    def serve(copy: Path) -> None:
        command = [sys.executable, "-m", "mutants", "--worker", str(copy), "--preload", *preload]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=copy, env=running.environment(copy), **pipes) as worker:
            while True:
                try:
                    number = waiting.get_nowait()
                except queue.Empty:
                    worker.stdin.close()
                    return
                worker.stdin.write(json.dumps(tasks[number]) + "\n")
                worker.stdin.flush()
                outcomes[number] = worker.stdout.readline().strip() or "the runner failed"
                mutant = tasks[number]["mutant"]
                place = f"{mutant['path']}:{mutant['first_line']}"
                print(
                    f"{number + 1}/{len(tasks)} {place} {mutant['kind']}: {outcomes[number]}",
                    flush=True,
                )

    threads = [threading.Thread(target=serve, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def _work(copy: Path, preload: list[str]) -> int:
    """Read tasks from standard input and answer each with its outcome."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    running.import_once(preload)
    for line in sys.stdin:
        task = json.loads(line)
        mutant = Mutant(**task["mutant"])
        print(
            running.run_mutant(copy, mutant, task["tests"], task["limit_s"]),
            file=answers,
            flush=True,
        )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=50, help="mutants to draw")
    parser.add_argument(
        "--paths", nargs="+", default=list(PATHS), help="files and folders to change"
    )
    parser.add_argument("--tests", nargs="+", default=list(TESTS), help="tests that may notice")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--budget-s", type=float, default=20.0, help="tests for each mutant")
    parser.add_argument(
        "--limit-s", type=float, default=60.0, help="for a mutant, or a test traced"
    )
    parser.add_argument("--preload", nargs="*", default=list(running.HEAVY), help="import once")
    parser.add_argument("--map-again", action="store_true", help="trace the tests again")
    parser.add_argument("--report", type=Path, default=Path(".mutants/report.json"))
    parser.add_argument("--equivalents", type=Path, default=EQUIVALENTS)
    parser.add_argument("--root", type=Path, default=Path.cwd(), help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
