"""A whole round of thousands of sites in one process, as a researcher has it: `fedllm simulate`.

Every site is there with all it does: it reads two made-up records, joins, checks what is signed,
charges its ledger, trains the head of a tiny random BERT with its share of the noise, masks,
encrypts, settles, takes its masks off. Nothing is left out but a wire. Prints CPU and peak memory,
how many sites are in the sum, and how many times a site of the large cohort costs one of a cohort
of a tenth of it.

    OMP_NUM_THREADS=1 python benchmarks/many_sites.py [--sites 5000] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from fedllm.runs.metrics import read_reports

WORDS = ("card", "cash", "bank", "loan", "rate", "fee", "lost", "open")
SPECIAL = ("<pad>", "<unk>")
LABELS = tuple(f"label-{number}" for number in range(24))


def write_model(folder: Path) -> None:
    """Save a random encoder of two layers, 16 wide, and its tokenizer."""
    vocabulary = {word: place for place, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    small = {"intermediate_size": 32, "max_position_embeddings": 16, "pad_token_id": 0}
    BertModel(BertConfig(vocab_size=len(vocabulary), **size, **small)).save_pretrained(folder)


def write_run(folder: Path, sites: int) -> Path:
    """Write two records a site, and a run of one round in which half of the sites must stay."""
    with (folder / f"{sites}.jsonl").open("w") as file:
        for number in range(2 * sites):
            text = f"{WORDS[number % 8]} {WORDS[number // 8 % 8]}"
            label = LABELS[number % len(LABELS)]
            file.write(json.dumps({"text": text, "label": label}) + "\n")
    run = folder / f"{sites}.toml"
    run.write_text(
        f"""name = "many-sites"
task = "classification"
model = {{path = "{folder}/model", max_length = 8}}
lora = {{rank = 0}}
data = {{train = "{folder}/{sites}.jsonl", labels = {json.dumps(LABELS)}, sites = {sites}}}
rounds = {{count = 1, min_sites = {max(2, sites // 2)}, optimizer = "momentum"}}
training = {{local_steps = 1, optimizer = "sgd", sampling_rate = 0.5, batch_size = 1}}
privacy = {{epsilon = 8, noise = "distributed"}}
"""
    )
    return run


def measure(folder: Path, sites: int) -> dict[str, float]:
    """Carry out a run in a process of its own.

    Raises
    ------
    SystemExit
        If it fails.
    """
    out = folder / f"out-{sites}"
    command = [sys.executable, "-m", "fedllm", "simulate", str(write_run(folder, sites))]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"a run of {sites} sites failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report = read_reports(out / "metrics.jsonl")[-1]
    return {
        "in the sum": float(report.sites),
        "cpu_s": cpu,
        "wall_s": time.perf_counter() - began,
        # In kilobytes; of the largest process so far, so the small cohort goes first.
        "peak_gb": after.ru_maxrss / 1e6,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=5000)
    parser.add_argument("--quick", action="store_true", help="forty sites and four")
    options = parser.parse_args()
    sites = 40 if options.quick else options.sites
    cohorts = (max(4, sites // 10), sites)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        found = {count: measure(folder, count) for count in cohorts}
    for count, one in found.items():
        print(
            f"{count:,} sites: {one['in the sum']:,.0f} in the sum, {one['cpu_s']:.0f} s of CPU, "
            f"{one['wall_s']:.0f} s, {one['peak_gb']:.1f} GB at most"
        )
    small, large = (found[count]["cpu_s"] / count for count in cohorts)
    print(
        f"a site of {cohorts[1]:,} takes {large / small:.2f} times the CPU of one of {cohorts[0]:,}"
    )


if __name__ == "__main__":
    main()
