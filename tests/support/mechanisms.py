"""Small runs of which only what protects them is asked."""

from __future__ import annotations

from fedllm.config import RunConfig, parse

SHARED = {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.25, "learning_rate": 1.0}


def config(privacy, training=None, **sections):
    values = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t", "labels": ["a", "b"]},
        "rounds": {"count": 4, "min_sites": 4},
        "training": {"batch_size": 8, **(training or {})},
        "privacy": {"delta": 1e-5, **privacy},
        **sections,
    }
    return parse(RunConfig, values, "test")


PRIVATE = {"epsilon": 4.0}
DISTRIBUTED = {**PRIVATE, "noise": "distributed"}
