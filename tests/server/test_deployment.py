"""Whole runs of a deployed federation: separate processes, TLS on loopback, kill -9."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.deployment import Deployment
from support.federation import records, small_config, write_jsonl

from fedllm.config import RunConfig


@pytest.fixture
def deployment(tiny_checkpoint, tmp_path) -> Iterator[Deployment]:
    made = Deployment(tmp_path, tiny_checkpoint("bert"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> RunConfig:
    test = write_jsonl(tmp_path / "test.jsonl", records(30, seed=99))
    return small_config(
        tiny_checkpoint("bert"),
        data={"train": "unused", "test": str(test), "labels": None, "sites": 3},
        rounds={"count": 3, "timeout_s": 60.0},
        training={"learning_rate": 0.02, "head_learning_rate": 0.05, "batch_size": 10},
    )


@pytest.mark.slow
def test_a_run_over_tls_from_submission_to_report(deployment, config):
    deployment.start_all()
    done = deployment.submit(config, "--json")
    assert done.returncode == 0, done.stderr + deployment.log("coordinator")
    assert json.loads(done.stdout)["rounds"] == 3
