from __future__ import annotations

from pathlib import Path

import pytest

from fedllm.config import load_run_config
from fedllm.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilno=3", ["unknown key 'privacy.epsilno'", "'privacy.epsilon'"]),
        ("epsilon=3", ["unknown key 'epsilon'", "'privacy.epsilon'"]),
        ("lora.rank=-1", ["lora.rank = -1", "greater than or equal to 0"]),
        ("privacy.epsilon=inf", ["privacy.epsilon", "finite"]),
        ("privacy.delta=1.5", ["privacy.delta"]),
        ("privacy.delta=0.5", ["privacy.delta", "0.01"]),
        ("rounds.count=100000000000000000000", ["rounds.count", "99999"]),
        ("rounds.min_sites=1", ["rounds.min_sites = 1", "greater than or equal to 2"]),
        ("training.local_steps=1000000", ["training.local_steps", "100000"]),
        ("task=poetry", ["task = 'poetry'", "classification"]),
        ("privacy.epsilon", ["expected KEY=VALUE"]),
        ("name.x=1", ["'name' is a value"]),
        ("training.sampling_rate=0", ["training.sampling_rate"]),
        ("name=../../etc", ["name"]),
        ("rounds.min_sites=11", ["rounds.min_sites is larger"]),
    ],
)
def test_wrong_keys_and_values_are_named(run_toml: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(run_toml, [override])
    for word in words:
        assert word in str(caught.value)
