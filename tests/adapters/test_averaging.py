"""What averaging lost is the distance that it is said to be, and told where it can be known."""

from __future__ import annotations

import numpy as np
import pytest
from adapters.test_aggregation import SITES, local_updates, lost
from adapters.test_methods import model_of
from support.federation import records, small_config, write_jsonl

from fedllm.adapters import adapter_of
from fedllm.adapters.averaging import AveragingLoss
from fedllm.runs.metrics import read_reports
from fedllm_server.simulation import simulate

CLEAR = {"scheme": "none"}


def test_it_is_the_distance_between_two_means(tiny_checkpoint, random_dataset):
    model = model_of(tiny_checkpoint, "lora")
    start = adapter_of(model).start() + np.float32(0.1)
    adapter_of(model).place(start)
    sent = local_updates(model, 1, [random_dataset(6, seed=seed) for seed in range(SITES)], steps=4)
    found = AveragingLoss(model.manifest, start)
    assert found.share() is None
    for update in sent:
        found.add(update.astype(np.float32))
    assert found.share() == pytest.approx(lost(model, 1, sent), rel=1e-4)
    assert found.share() > 1e-3
    alone = AveragingLoss(model.manifest, start)
    alone.add(sent[0])
    assert alone.share() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("lora", "steps", "encryption", "known"),
    [
        ({}, 3, CLEAR, True),
        ({}, 1, CLEAR, False),
        ({"method": "ffa"}, 3, CLEAR, False),
        ({"rank": 0}, 3, CLEAR, False),
        ({"ranks": [[0, 1], [12, 2]]}, 3, CLEAR, False),
        ({}, 3, {"scheme": "bfv"}, False),
    ],
    ids=str,
)
def test_a_run_tells_it_where_updates_are_seen(
    lora, steps, encryption, known, tiny_checkpoint, tmp_path
):
    train = write_jsonl(tmp_path / "train.jsonl", records(60))
    config = small_config(
        tiny_checkpoint("bert"),
        data={"train": str(train)},
        lora={"rank": 2, **lora},
        rounds={"count": 2},
        training={"local_steps": steps, "learning_rate": 0.05},
        encryption=encryption,
    )
    simulate(config, tmp_path / "run", observers=[])
    told = [report.averaging_lost for report in read_reports(tmp_path / "run" / "metrics.jsonl")]
    assert told[0] is None
    assert [value is not None and 0 < value < 1 for value in told[1:]] == [known] * 2
