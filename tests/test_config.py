from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.config import (
    RunConfig,
    SitePolicy,
    apply_overrides,
    load_run_config,
    load_site_policy,
    parse,
    resolve_location,
    to_toml,
)
from fedllm.errors import ConfigError

MINIMAL = """
name = "x"
task = "classification"
[model]
path = "base"
[data]
train = "train.jsonl"
"""


@pytest.fixture
def run_toml(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def test_relative_locations_count_from_the_file(run_toml: Path) -> None:
    config = load_run_config(run_toml)
    assert config.model.path == str(run_toml.parent / "base")
    assert config.data.train == str(run_toml.parent / "train.jsonl")


def test_override_changes_nested_keys_and_nothing_restores_the_default(run_toml: Path) -> None:
    config = load_run_config(run_toml, ["privacy.epsilon=3", "lora.rank=4", "name=other"])
    assert (config.privacy.epsilon, config.lora.rank, config.name) == (3.0, 4, "other")
    assert load_run_config(run_toml, ["privacy.epsilon=3", "privacy.epsilon=none"]).private is False
    assert load_run_config(run_toml, ["lora.rank=4", "lora.rank="]).lora.rank == 8


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("privacy.epsilno=3", ["unknown key 'privacy.epsilno'", "'privacy.epsilon'"]),
        ("epsilon=3", ["unknown key 'epsilon'", "'privacy.epsilon'"]),
        ("lora.rank=-1", ["lora.rank = -1", "greater than or equal to 0"]),
        ("privacy.epsilon=inf", ["privacy.epsilon", "finite"]),
        ("privacy.delta=1.5", ["privacy.delta"]),
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


def test_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDLLM_X", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    assert resolve_location("${FEDLLM_X:-../d}/a.csv", folder, "k") == str(tmp_path / "d/a.csv")
    with pytest.raises(ConfigError, match="FEDLLM_X"):
        resolve_location("${FEDLLM_X}/a.csv", folder, "k")
    monkeypatch.setenv("FEDLLM_X", "here")
    assert resolve_location("${FEDLLM_X:-../d}/a.csv", folder, "k") == str(tmp_path / "here/a.csv")
    url = "postgresql://u@h/db"
    assert resolve_location(url, folder, "k") == url


def test_a_run_configuration_survives_toml(run_toml: Path) -> None:
    for scheme in ("bfv", "ckks", "none"):
        config = load_run_config(run_toml, [f"encryption.scheme={scheme}"])
        assert parse(RunConfig, tomllib.loads(to_toml(config)), "copy") == config
    config = load_run_config(
        run_toml, ['data.labels=["a", "é\\n", "\\u007f"]', "privacy.epsilon=1e-3", "seed=12"]
    )
    assert parse(RunConfig, tomllib.loads(to_toml(config)), "copy") == config
    assert parse(SitePolicy, tomllib.loads(to_toml(SitePolicy())), "copy") == SitePolicy()


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text: str) -> None:
    values = tomllib.loads(MINIMAL)
    values["data"]["text"] = text
    config = parse(RunConfig, values, "x")
    assert tomllib.loads(to_toml(config))["data"]["text"] == text


@given(st.lists(st.text(max_size=20), max_size=5))
def test_any_override_is_applied_or_refused_clearly(overrides: list[str]) -> None:
    with contextlib.suppress(ConfigError):
        apply_overrides({"a": {"b": 1}}, overrides)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"privacy.noise": "local"}, "needs privacy.noise"),
        ({"training.learning_rate": 0.5}, "learning_rate = 1"),
        ({"training.head_learning_rate": 0.5}, "learning_rate = 1"),
        ({"encryption.scheme": "ckks"}, "sums are exact"),
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
    values: dict[str, Any] = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t"},
    }
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
    values: dict[str, Any] = {
        "name": "x",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t"},
        "privacy": {"unit": "site", "epsilon": 1.0},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    with pytest.raises(ConfigError, match=words):
        parse(RunConfig, values, "test")
