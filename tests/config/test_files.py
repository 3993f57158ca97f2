from __future__ import annotations

from pathlib import Path

import pytest

from fedllm.config import load_run_config, load_site_policy
from fedllm.errors import ConfigError


def test_relative_locations_count_from_the_file(run_toml: Path) -> None:
    config = load_run_config(run_toml)
    assert config.model.path == str(run_toml.parent / "base")
    assert config.data.train == str(run_toml.parent / "train.jsonl")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*none\.toml"):
        load_run_config(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load_run_config(tmp_path / "bad.toml")


def test_policy_is_as_strict(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text("[budget]\nepsilon = 2\n[allow]\nmin_cohort = 3\n")
    policy = load_site_policy(path)
    assert (policy.budget.epsilon, policy.allow.min_cohort) == (2.0, 3)
    path.write_text("[budget]\nepsilom = 2\n")
    with pytest.raises(ConfigError, match=r"did you mean 'budget\.epsilon'"):
        load_site_policy(path)
