from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fedllm.config import apply_overrides, load_run_config
from fedllm.errors import ConfigError


def test_override_changes_nested_keys_and_nothing_restores_the_default(run_toml: Path) -> None:
    config = load_run_config(run_toml, ["privacy.epsilon=3", "lora.rank=4", "name=other"])
    assert (config.privacy.epsilon, config.lora.rank, config.name) == (3.0, 4, "other")
    assert load_run_config(run_toml, ["privacy.epsilon=3", "privacy.epsilon=none"]).private is False
    assert load_run_config(run_toml, ["lora.rank=4", "lora.rank="]).lora.rank == 0


@given(st.lists(st.text(max_size=20), max_size=5))
def test_any_override_is_applied_or_refused_clearly(overrides: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        apply_overrides({"a": {"b": 1}}, overrides)
