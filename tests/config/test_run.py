from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from fedllm.config import RunConfig, load_run_config, parse
from fedllm.errors import ConfigError

MINIMAL = {
    "name": "x",
    "task": "classification",
    "model": {"path": "m"},
    "data": {"train": "t"},
}


@pytest.mark.parametrize(
    "override",
    ["training.local_steps=2", "training.optimizer=adam", "encryption.scheme=none"],
)
def test_distributed_noise_refuses_what_would_break_it(run_toml: Path, override: str) -> None:
    good = [
        "privacy.noise=distributed",
        "privacy.epsilon=1",
        "training.local_steps=1",
        "training.optimizer=sgd",
        "training.sampling_rate=0.1",
    ]
    assert load_run_config(run_toml, good).privacy.noise == "distributed"
    with pytest.raises(ConfigError, match="distributed"):
        load_run_config(run_toml, [*good, override])


def test_masks_need_bfv(run_toml: Path) -> None:
    with pytest.raises(ConfigError, match="CKKS has no exact modular sum"):
        load_run_config(run_toml, ["encryption.scheme=ckks", "encryption.masks=true"])
    assert load_run_config(run_toml, ["encryption.scheme=ckks"]).encryption.masked is False
    assert load_run_config(run_toml).encryption.masked is True


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"privacy.noise": "local"}, "needs privacy.noise"),
        ({"training.learning_rate": 0.5}, "learning_rate = 1"),
        ({"training.head_learning_rate": 0.5}, "learning_rate = 1"),
        ({"encryption.scheme": "ckks"}, "needs masks"),
    ],
)
def test_discrete_noise_names_what_it_needs(change, words):
    keys = {
        "privacy.noise": "distributed",
        "privacy.distribution": "discrete_gaussian",
        "privacy.epsilon": 1.0,
        "training.local_steps": 1,
        "training.optimizer": "sgd",
        "training.sampling_rate": 0.1,
        "training.learning_rate": 1.0,
        **change,
    }
    values: dict[str, Any] = copy.deepcopy(MINIMAL)
    for key, value in keys.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    with pytest.raises(ConfigError, match=words):
        parse(RunConfig, values, "test")


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"evaluation": {"every": 2}}, "hides single records"),
        ({"privacy": {"clipping_quantile": 0.5}}, "follows its own gradients"),
        (
            {
                "privacy": {"clipping_quantile": 0.5, "unit": "record"},
                "training": {"optimizer": "sgd"},
            },
            "optimizer = 'adam'",
        ),
        (
            {"privacy": {"distribution": "discrete_gaussian", "noise": "distributed"}},
            "needs privacy.unit",
        ),
    ],
)
def test_kinds_of_privacy_name_what_does_not_go_with_them(sections, words):
    values: dict[str, Any] = {**MINIMAL, "privacy": {"unit": "site", "epsilon": 1.0}}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    with pytest.raises(ConfigError, match=words):
        parse(RunConfig, values, "test")
