"""Every benchmark runs at a small size and prints a ratio; what it measures is not looked at."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
# Modules that benchmarks use; the package of `released_platform.py` is not installed here.
HELPERS = {
    "adapters_run",
    "adapters_table",
    "decoders",
    "plain_llama",
    "protocol_cohort",
    "protocol_round",
    "released_platform",
}
RATIO = {
    "adapters": r"product's time \|\n(.*\n)+\| `ffa` \| 8 .* \| \d+\.\d\d \|",
    "compression": r"\| 16 \| 32 \| .* \| \d\.\d\d \| \d\.\d\d \|",
    "dashboard": r"many viewers / one: CPU \d",
    "deployment": r"times plain Flower's round looking as often",
    "discrete_noise": r"times NumPy's normals",
    "encryption": r"packed / bfv-16: bytes \d",
    "memory": r"\| MiniLM \|.* \d\.\d\d \|",
    "first_step": r"core of public texts.*ratio -?\d",
    "many_sites": r"40 in the sum.*\na site of 40 takes \d+\.\d\d times the CPU",
    "poisoning": r"local +10 +signal( +\d+\.\d){4}",
    "pretraining": r"fedllm, adamw .* ratio \d",
    "pretraining_quality": r"ratio to the best plain loop \d",
    "privacy_utility": r"CPU of round over plain step +\d",
    "private_step": r"takes \d\S* times the CPU time",
    "protocol": r"times fp32 \|\n.*\n(\| 1k \| \d.* \d+\.\d\d \|\n){2}",
    "quantization": r"\| bfloat16 \| int4 \|.* \d\.\d\d \| nan \|",
    "quality": r"ratio to a law that always says the mean: \d",
    "unequal_ranks": r"4, 8, 16 by size \| 0\.\d+ \| [+-]\d",
    "sampled_words": r"16384 words: ratio \d",
    "round": r"encrypted / clear +\d",
    "serving": r"together / transformers: ratio \d+\.\d\d\n(.*\n)*kept / not kept: ratio \d\.\d\d",
}
NEEDS_DATA = {
    "adapters",
    "discrete_noise",
    "poisoning",
    "privacy_utility",
    "quality",
    "unequal_ranks",
}


def test_no_benchmark_is_left_out():
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == HELPERS | set(RATIO)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.data] if n in NEEDS_DATA else []) for n in RATIO],
)
def test_runs_quickly_and_prints_a_ratio(name, tmp_path):
    script = str(BENCHMARKS / f"{name}.py")
    done = subprocess.run(
        [sys.executable, script, "--quick"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert re.search(RATIO[name], done.stdout), done.stdout


@pytest.mark.slow
def test_the_protocol_is_compared_with_another_checkout(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "protocol.py"), "--quick", "--against"]
    done = subprocess.run(
        [*command, str(BENCHMARKS.parent)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ratios = re.findall(r"^\| 1k \|.* (\d+\.\d\d) \|$", done.stdout, re.MULTILINE)
    assert "other / this" in done.stdout and len(ratios) == 2, done.stdout
    # Not the code that is installed in place of the one that was asked for.
    (tmp_path / "fedllm").mkdir()
    refused = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert refused.returncode != 0 and "which is not of" in refused.stderr, refused.stderr[-2000:]
