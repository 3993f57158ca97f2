"""Run the tests that execute a mutated line, against a copy of the program with the mutant.

Packages that take long to import are imported once; each mutant is a fork of that process. The
working tree is only read.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mutants.drawing import Mutant, at_import, lines_that_use, names_at_import

HEAVY = ("numpy", "scipy.stats", "torch", "opacus", "dp_accounting.pld", "peft", "flwr.serverapp")
PACKAGES = ("fedllm", "fedllm_client", "fedllm_server")
KILLED, TIMED_OUT, SURVIVED, UNTESTED = "killed", "timed out", "survived", "no test"


@dataclass(frozen=True)
class CoveredTest:
    """One test: how long it took when it was traced, and the lines that it executes."""

    name: str
    seconds: float
    lines: dict[str, frozenset[int]]

    @property
    def file(self) -> str:
        return self.name.partition("::")[0]


def read_map(path: Path) -> list[CoveredTest]:
    found = {}
    for text in path.read_text().splitlines():
        entry = json.loads(text)
        lines = {name: frozenset(numbers) for name, numbers in entry["lines"].items()}
        found[entry["test"]] = CoveredTest(entry["test"], entry["seconds"], lines)
    return list(found.values())


def make_map(copy: Path, target: Path, paths: list[str], tests: list[str], limit_s: float) -> None:
    """Run ``tests`` once, traced; a test that fails or is too slow has no part in what follows."""
    unfinished = target.with_suffix(".part")
    unfinished.unlink(missing_ok=True)
    where = {"MUTANTS_MAP": str(unfinished), "MUTANTS_PATHS": ":".join(paths)}
    options = ["-p", "mutants.covering", f"--timeout={limit_s:g}", "--tb=no", "-q"]
    options += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    subprocess.run(command, cwd=copy, env=environment(copy) | where, check=False)
    unfinished.replace(target)


def tests_for(mutant: Mutant, root: Path, tests: list[CoveredTest]) -> list[CoveredTest]:
    """Tests that could notice a mutant, the likeliest first, and of these the quickest.

    They execute the mutant. What a module's import executes is in no test's lines: it is tried by
    tests that execute a line that reads it, in any module, or whose file names it or is the
    module's own; then by all others that execute a function of the module.
    """
    source = (root / mutant.path).read_bytes()
    lines = {mutant.path: lines_that_use(mutant, source)}
    touching = [test for test in tests if mutant.path in test.lines]
    if not at_import(mutant, source):
        chosen = [test for test in touching if _execute(test, lines)] or touching
        return sorted(chosen, key=lambda test: test.seconds)
    names = names_at_import(mutant, source)
    modules = {path for test in tests for path in test.lines} - lines.keys()
    lines |= {path: _lines_with(names, root / path) for path in modules}
    own = f"test_{Path(mutant.path).name}"
    files = {file for file in {test.file for test in tests} if Path(file).name == own}
    files |= {test.file for test in tests if _lines_with(names, root / test.file)}
    near = [test for test in tests if test.file in files or _execute(test, lines)]
    others = [test for test in touching if test not in near]
    return [
        *sorted(near, key=lambda test: test.seconds),
        *sorted(others, key=lambda test: test.seconds),
    ]


def _execute(test: CoveredTest, lines: Mapping[str, Set[int]]) -> bool:
    return any(test.lines[path] & lines.get(path, set()) for path in test.lines)


@cache
def _words(path: Path) -> list[frozenset[str]]:
    """The words of each line of a file; none if there is no such file."""
    text = path.read_text() if path.exists() else ""
    return [frozenset(re.findall(r"\w+", line)) for line in text.splitlines()]


def _lines_with(names: set[str], path: Path) -> set[int]:
    return {number for number, words in enumerate(_words(path), 1) if names & words}


def within(tests: list[CoveredTest], budget_s: float) -> list[CoveredTest]:
    """As many of the first tests as fit in ``budget_s`` together, but always one."""
    total = 0.0
    for number, test in enumerate(tests):
        total += test.seconds
        if number and total > budget_s:
            return tests[:number]
    return tests


def copy_tree(root: Path, target: Path) -> None:
    """Copy what git keeps or would keep."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=root, check=True, capture_output=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def environment(copy: Path) -> dict[str, str]:
    """The environment in which the copy, not the installed program, is imported."""
    tool = Path(__file__).resolve().parent.parent
    found = [str(copy), *(str(copy / name) for name in ("clients", "server")), str(tool)]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return dict(os.environ) | single | {"PYTHONPATH": os.pathsep.join(found)}


def import_once(names: list[str]) -> None:
    """Import what takes long and never changes, so that every fork has it already."""
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    ours = [name for name in sys.modules if name.split(".")[0] in PACKAGES]
    if ours:
        raise RuntimeError(f"{ours[0]} must not be imported before it is changed")


def run_mutant(copy: Path, mutant: Mutant, tests: list[str], limit_s: float) -> str:
    """Put the mutant into the copy, run the tests in a fork, take it out again."""
    if not tests:
        return UNTESTED
    file = copy / mutant.path
    source = file.read_bytes()
    file.write_bytes(mutant.apply(source))
    try:
        return _outcome(copy, tests, limit_s)
    finally:
        file.write_bytes(source)


def _outcome(copy: Path, tests: list[str], limit_s: float) -> str:
    child = os.fork()
    if child == 0:
        _run_tests(copy, tests)
    deadline = time.monotonic() + limit_s
    status: int | None = None
    while status is None and time.monotonic() < deadline:
        done, ended = os.waitpid(child, os.WNOHANG)
        status = ended if done else None
        if not done:
            time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # also services that a test has started
    if status is None:
        os.waitpid(child, 0)
        return TIMED_OUT
    return SURVIVED if os.waitstatus_to_exitcode(status) == 0 else KILLED


def _run_tests(copy: Path, tests: list[str]) -> None:
    """Run pytest in this fork and end it; never returns."""
    code = 3
    try:
        os.setpgid(0, 0)
        os.chdir(copy)
        with (copy / ".output").open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        import pytest

        code = int(pytest.main(["-x", "-q", "--tb=short", "-p", "no:cacheprovider", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)
