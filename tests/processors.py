"""Run what rests on rounding as other processors round: ``make processors``.

Libraries choose their kernels by what the processor can do, and each adds up in an order of its
own. A test that holds by a rounding's luck fails on another machine, so the numerical tests and
the self-test run with one thread under each set of instructions that this processor has but the
last, its own, where ``make test`` runs them, and with two threads under that one. One line says
how each setting went, or why it was not run; the exit code is 1 if one failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# Where torch's sums are compared with something: the others count, parse, or work in integers.
NUMERICAL = (
    "tests/adapters",
    "tests/training",
    "tests/models/test_split.py",
    "tests/models/test_transformer.py",
    "tests/privacy/test_adaptive.py",
    "tests/privacy/test_dpsgd.py",
    "tests/pretraining/test_masked.py",
    "tests/pretraining/test_objectives.py",
    "tests/pretraining/test_optimizer.py",
    "tests/tasks/test_losses.py",
    "tests/audit/attacks/test_sandbox.py",
)
# The first compares what no kernel decides: each unit is computed by itself; the second counts
# bytes. The others take whole runs through methods of adapting, longer than all the rest.
LEFT_OUT = (
    "tests/training/test_company.py",
    "tests/training/test_memory.py",
    "tests/adapters/test_methods.py",
    "tests/adapters/test_averaging.py",
    "tests/adapters/test_ranks.py",
)
TIMEOUT_S = 600


@dataclass(frozen=True)
class Setting:
    """Instructions that the libraries may use at most.

    Attributes
    ----------
    name : str
        For people.
    environment : dict
        Says so to torch, oneDNN, MKL and OpenBLAS.
    needs : tuple of str
        What the processor must have, as Linux names it.
    """

    name: str
    environment: dict[str, str] = field(hash=False)
    needs: tuple[str, ...] = ()


def _setting(name: str, aten: str, onednn: str, mkl: str, blas: str, *needs: str) -> Setting:
    environment = {
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "MKL_ENABLE_INSTRUCTIONS": mkl,
        "OPENBLAS_CORETYPE": blas,
    }
    return Setting(name, environment, needs)


_AVX512 = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
SETTINGS = (
    _setting("default", "default", "SSE41", "SSE4_2", "Nehalem"),
    _setting("AVX2", "avx2", "AVX2", "AVX2", "Haswell", "avx2", "fma"),
    _setting("AVX-512", "avx512", "AVX512_CORE", "AVX512", "SkylakeX", *_AVX512),
    _setting(
        "AVX-512 with AMX",
        "avx512",
        "AVX512_CORE_AMX",
        "AVX512",
        "SkylakeX",
        *_AVX512,
        "avx512_bf16",
        "amx_tile",
        "amx_bf16",
        "amx_int8",
    ),
)


def features(cpuinfo: str) -> frozenset[str]:
    """Return what the processor can do, from the text of ``/proc/cpuinfo``."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return frozenset(next((rest.split() for key, _, rest in lines if key.strip() == "flags"), ()))


def commands(python: str) -> dict[str, list[str]]:
    """Return what runs under each setting."""
    return {
        "tests": [
            python,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            *(f"--ignore={path}" for path in LEFT_OUT),
            *NUMERICAL,
        ],
        "self-test": [
            python,
            "-c",
            "from fedllm.cli import main; main()",
            "audit",
            "selftest",
            "--quick",
        ],
    }


def run(setting: Setting, threads: int) -> list[str]:
    """Run everything under a setting; return the names of what failed, its output shown."""
    number = str(threads)
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), number)
    environment = {**os.environ, **setting.environment, **counts}
    failed = []
    for name, command in commands(sys.executable).items():
        try:
            done = subprocess.run(
                command,
                check=False,
                cwd=REPOSITORY,
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
            )
            output, good = done.stdout + done.stderr, done.returncode == 0
        except subprocess.TimeoutExpired:
            output, good = f"{name}: not finished after {TIMEOUT_S} s", False
        if not good:
            print(output, flush=True)
            failed.append(name)
    return failed


def line(setting: Setting, threads: int, reason: str | None) -> tuple[bool, str]:
    """Run a setting, unless there is a reason not to; return whether it failed, and its line."""
    where = f"{setting.name}, {threads} thread{'s' if threads > 1 else ''}"
    if reason:
        return False, f"NOT RUN  {where}: {reason}"
    start = time.monotonic()
    failed = run(setting, threads)
    word = f"FAIL     {where}: {' and '.join(failed)}" if failed else f"pass     {where}"
    return bool(failed), f"{word} ({time.monotonic() - start:.0f} s)"


def left_out(setting: Setting, able: frozenset[str], asked: bool) -> str | None:
    """Return why a setting is not run with one thread, if so."""
    missing = [flag for flag in setting.needs if flag not in able]
    if missing:
        return f"this processor lacks {', '.join(missing)}"
    if setting == own(able) and not asked:
        return "it is this processor's own, under which `make test` runs the same tests"
    return None


def own(able: frozenset[str]) -> Setting:
    """Return the setting under which a processor works if it is told nothing."""
    return [setting for setting in SETTINGS if able.issuperset(setting.needs)][-1]


def main(only: list[str]) -> int:
    """Go through all settings, or those whose names are given; as many at once as have room."""
    unknown = set(only) - {setting.name for setting in SETTINGS}
    if unknown:
        print(f"no such setting: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    able = features(Path("/proc/cpuinfo").read_text())
    wanted = [setting for setting in SETTINGS if not only or setting.name in only]
    one = [(setting, 1, left_out(setting, able, bool(only))) for setting in wanted]
    two = [(setting, 2, None) for setting in wanted if setting == own(able)]
    failures = 0
    for threads, jobs in ((1, one), (2, two)):
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // threads)) as pool:
            for failed, said in pool.map(lambda job: line(*job), jobs):
                print(said, flush=True)
                failures += failed
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
