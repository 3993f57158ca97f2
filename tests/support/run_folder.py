"""A run folder as a finished run leaves it, with made-up figures."""

from __future__ import annotations

import json

from fedllm.config import RunConfig, parse, to_toml

SITES = ("Northgate", "Riverside", "Stonefield", "Eastbrook")


def run_config(**changes):
    values = {
        "name": "made-up",
        "task": "classification",
        "model": {"path": "base"},
        "data": {"train": "t.jsonl", "unit": "person", "site": "hospital"},
        "rounds": {"count": 5},
        "privacy": {"epsilon": 8.0, "noise": "local", "clipping_norm": 0.1},
        "training": {"sampling_rate": 0.0625},
    }
    for section, change in changes.items():
        laid_over = isinstance(change, dict) and section in values
        values[section] = {**values[section], **change} if laid_over else change
    return parse(RunConfig, values, "test")


def summary(**changes):
    values = {
        "run": "made-up",
        "run_id": "0123456789abcdef",
        "task": "classification",
        "rounds": 5,
        "sites": 4,
        "site_names": list(SITES),
        "bytes_up": 52_428_803,
        "bytes_down": 10_485_761,
        "metrics": {"loss": 0.31415, "accuracy": 0.9137},
        "privacy": {
            "epsilon": 7.9321,
            "delta": 1e-5,
            "unit": "person",
            "noise": "local",
            "sites": {site: 7.9321 - i / 100 for i, site in enumerate(SITES)},
        },
        "encryption": {
            "scheme": "bfv",
            "bytes_up_per_parameter": 7.0312,
            "expansion_vs_fp32": 1.7578,
            "poly_degree": 4096,
            "coeff_bits": [40, 32, 20],
        },
        "seconds": {
            "total": 87.25,
            "train": 61.5,
            "encrypt": 2.375,
            "aggregate": 0.625,
            "decrypt": 0.1875,
        },
        "adapter_sha256": "ad" * 32,
        "model": {
            "path": "base",
            "fingerprint": "fe" * 32,
            "parameters": 935_040,
            "adapter_parameters": 16_384,
        },
        "versions": {"torch": "2.99.1"},
    }
    return {**values, **changes}


def rounds(sites=SITES, count=5):
    lines = [{"round": 0, "sites": 0, "dropped": [], "metrics": {"loss": 2.75, "accuracy": 0.19}}]
    for number_ in range(1, count + 1):
        spent = 7.9321 * (number_ / count) ** 0.5
        lines.append(
            {
                "round": number_,
                "sites": len(sites),
                "dropped": {sites[-1]: "too late"} if number_ == 3 else [],
                "metrics": {"loss": 2.75 - 0.48 * number_, "accuracy": 0.19 + 0.14 * number_},
                "epsilon": {site: spent - i / 100 for i, site in enumerate(sites)},
                "seconds": {"total": 17.0, "train": 12.0, "evaluate": 4.5},
            }
        )
    return lines


def write_run(folder, config=None, figures=None, lines=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.toml").write_text(to_toml(config or run_config()))
    (folder / "summary.json").write_text(json.dumps(summary() if figures is None else figures))
    text = "".join(json.dumps(line) + "\n" for line in (lines or rounds()))
    (folder / "metrics.jsonl").write_text(text)
    return folder
