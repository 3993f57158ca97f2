"""Sites of unequal ranks: each trains its blocks, and each block is the mean of who trains it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.federation import LABELS, records, small_config, write_jsonl
from support.tasks import load_model

from fedllm.adapters import adapter_of
from fedllm.adapters.ranks import block_weights, trained_places
from fedllm.config import LoraSection
from fedllm.errors import ConfigError
from fedllm.federation.site.work import TrainingAtSite
from fedllm.models.manifest import AdapterManifest
from fedllm.runs.checkpoints import load_checkpoint
from fedllm_server.simulation import simulate

RANKS = [[0, 1], [12, 2], [24, 4]]
SIZES = {"a": 10, "b": 16, "c": 40}
MANIFEST = AdapterManifest.of(
    [
        ("layer.lora_A.default.weight", (3, 2), "lora"),
        ("layer.lora_B.default.weight", (2, 3), "lora"),
        ("head.weight", (2,), "head"),
    ]
)


def test_blocks_are_rows_of_a_and_columns_of_b():
    head, a, b = [True, True], [True, True, False, False, False, False], [True, False, False] * 2
    assert trained_places(MANIFEST, 1).tolist() == [*head, *a, *b]
    assert trained_places(MANIFEST, 3).all()
    weights = block_weights(MANIFEST, [1, 2, 2, 1])
    assert weights.tolist() == [1, 1, 1, 1, 2, 2, 0, 0, 1, 2, 0, 1, 2, 0]
    assert block_weights(MANIFEST, [3, 3]).tolist() == [1.0] * 14


@pytest.mark.parametrize(
    ("lora", "sections", "match"),
    [
        ({"ranks": [[0, 4], [10, 2]]}, {}, "must rise"),
        ({"ranks": [[5, 4]]}, {}, "the first size be 0"),
        ({"ranks": [[0, 2], [0, 4]]}, {}, "must rise"),
        ({"ranks": [[0, 2]]}, {}, "the last one is 2, and rank is 4"),
        ({"ranks": [[0, 4]], "method": "core"}, {}, "have no blocks"),
        ({"ranks": [[0, 4]], "method": "rolora"}, {}, "have no blocks"),
        (
            {"ranks": [[0, 4]]},
            {"privacy": {"epsilon": 4.0, "noise": "distributed"}, "training": {"local_steps": 1}},
            "needs the size that sites announce",
        ),
        ({"ranks": [[0, 4]]}, {"privacy": {"unit": "site"}}, "needs the size that sites announce"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(lora, sections, match, tiny_checkpoint):
    with pytest.raises(ConfigError, match=match):
        small_config(tiny_checkpoint("bert"), lora={"rank": 4, **lora}, **sections)


def test_a_rank_follows_from_the_size_that_was_announced():
    found = LoraSection(rank=4, ranks=tuple(map(tuple, RANKS)))
    assert [found.rank_of(units) for units in (1, 11, 12, 23, 24, 5000)] == [1, 1, 2, 2, 4, 4]
    assert LoraSection(rank=8).rank_of(3) == 8


@pytest.mark.parametrize("method", ["lora", "ffa"])
@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_each_block_is_the_mean_of_the_sites_that_train_it(
    method, epsilon, tiny_checkpoint, tmp_path, monkeypatch
):
    rows = [
        dataclasses.replace(row, values={**row.values, "ward": ward})
        for seed, (ward, count) in enumerate(SIZES.items())
        for row in records(count, seed=seed)
    ]
    train = write_jsonl(tmp_path / "train.jsonl", rows)
    config = small_config(
        tiny_checkpoint("bert"),
        data={"train": str(train), "site": "ward"},
        lora={"rank": 4, "ranks": RANKS, "method": method},
        rounds={"count": 1, "min_sites": 3},
        training={"local_steps": 2, "learning_rate": 0.1, "head_learning_rate": 0.1},
        privacy={"epsilon": epsilon},
    )
    sent, right = {}, TrainingAtSite.train

    def spied(self, *arguments):
        result = right(self, *arguments)
        sent[len(self.dataset)] = result.update
        return result

    monkeypatch.setattr(TrainingAtSite, "train", spied)
    simulate(config, tmp_path / "run", observers=[])
    model = load_model(config, LABELS)
    up = adapter_of(model).up
    ranks = {10: 1, 16: 2, 40: 4}
    assert set(sent) == set(ranks)
    for size, update in sent.items():
        trained = trained_places(up, ranks[size])
        assert not update[~trained].any()
        assert (update[trained] != 0).mean() > 0.4
    moved = load_checkpoint(tmp_path / "run" / "checkpoints").adapter - adapter_of(model).start()
    total = np.sum(list(sent.values()), axis=0)
    trains = np.sum([trained_places(up, rank) for rank in ranks.values()], axis=0)
    assert set(trains.tolist()) == {1, 2, 3}
    # What is sent is rounded to levels.
    np.testing.assert_allclose(moved, total / trains, atol=2e-3)
    alone = trains == 1
    assert np.abs(moved[alone]).max() > 0.01
