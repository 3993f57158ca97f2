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
        ("lora.rank=-1", ["lora.rank = -1", "a whole number, at least 0"]),
        ("privacy.epsilon=inf", ["privacy.epsilon = inf", "finite", "above 0"]),
        ("privacy.delta=1.5", ["privacy.delta"]),
        ("privacy.delta=0.5", ["privacy.delta", "0.01"]),
        ("rounds.count=100000000000000000000", ["rounds.count", "99999"]),
        ("rounds.min_sites=1", ["rounds.min_sites = 1", "at least 2"]),
        ("training.local_steps=1000000", ["training.local_steps", "100000"]),
        ("task=poetry", ["task = 'poetry'", "classification"]),
        ("privacy.epsilon", ["expected KEY=VALUE"]),
        ("name.x=1", ["'name' is a value"]),
        ("training.sampling_rate=0", ["training.sampling_rate"]),
        ("name=../../etc", ["name"]),
        ("rounds.min_sites=11", ["rounds.min_sites = 11 is larger than data.sites = 10"]),
        ("rounds.sites=1", ["sites = 1 is smaller than min_sites = 2"]),
        ('rounds.count="five"', ["rounds.count = 'five': must be a whole number", "at most 99999"]),
        (
            "privacy.noise=shared",
            [
                "privacy.noise = 'shared': must be 'local' or 'distributed'",
                "did you mean 'distributed'?",
            ],
        ),
        ("lora.method=FedSVD", ["did you mean 'fedsvd'?"]),
        ("lora.method=lora-xs", ["did you mean 'core'?"]),
        ("model.precision=bf16", ["did you mean 'bfloat16'?"]),
        ("data.labels=3", ["data.labels = 3: must be a list, each entry a text"]),
        ("data.labels=[1]", ["data.labels = 1: must be a list, each entry a text"]),
        ("lora.target_modules=3", ["lora.target_modules = 3: must be 'auto', or a list"]),
        ("lora.freeze_a=7", ["lora.freeze_a = 7: must be true or false"]),
        ("rounds=3", ["rounds = 3: must be a section"]),
        ("name=süd", ["name = 'süd': must be 1 to 64 letters"]),
        ("privacy.unit=person", ["privacy.unit = 'person'", "to protect persons", "data.unit"]),
        ("privacy.unit=ward", ["privacy.unit = 'ward': must be 'record' or 'site'"]),
        ("privacy.epsilon=8,0", ["'8,0'", "a decimal point and no comma"]),
        ('privacy.delta="1,5e-5"', ["a decimal point and no comma"]),
    ],
)
def test_wrong_keys_and_values_are_named(run_toml: Path, override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(run_toml, [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        'data.train=["postgresql+psycopg://nurse:pa55word@db/clinic"]',
        'data.train=["postgresql+psycopg://nurse:pa55@word/x@db/clinic"]',
        'data.sites="postgresql+psycopg://nurse:pa55word@db/clinic"',
        'data.sites="postgresql+psycopg://nurse:pa55,word@db/clinic"',
        'data.sites="postgresql+psycopg://nurse:pa55 word@db/clinic"',
        "data.sites='postgresql+psycopg://nurse:pa55\"word@db/clinic'",
        'data.sites="postgresql+psycopg://nurse:pa55\'\\nword@db/clinic"',
        'data.sites=["postgresql+psycopg://nurse:x, \'pa55@db/clinic"]',
        "data.sites=['://a:pa55@one', 'postgresql://nurse:pa55@db/clinic']",
    ],
)
def test_a_password_in_a_value_is_not_shown(run_toml: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(run_toml, [override])
    assert "pa55" not in str(caught.value)
    assert "***@db/clinic" in str(caught.value)


def test_no_word_of_the_library_that_checks_values_is_shown(run_toml: Path) -> None:
    values = [
        "rounds.count=x",
        "data.labels=3",
        "lora.target_modules=3",
        "model.path=[]",
        "seed=-1",
    ]
    with pytest.raises(ConfigError) as caught:
        load_run_config(run_toml, values)
    text = str(caught.value)
    assert "Input should" not in text
    assert "tuple" not in text
    # One line for each key, also where a value fits none of several types.
    assert len(text.splitlines()) == len(values)


def test_a_remedy_among_several_names_its_key(run_toml: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(run_toml, ["privacy.epsilno=3", "rounds.cuont=3"])
    assert "privacy.epsilno: did you mean 'privacy.epsilon'?" in caught.value.remedy
    assert "rounds.cuont: did you mean 'rounds.count'?" in caught.value.remedy


def test_a_key_that_resembles_nothing_gets_the_known_ones(run_toml: Path) -> None:
    with pytest.raises(ConfigError, match="known keys here: name, task"):
        load_run_config(run_toml, ["tokens=3"])


@pytest.mark.parametrize("key", ["data.train.url=", "name.x.y=", "", "data."])
def test_an_override_that_cannot_be_read_shows_no_password(run_toml: Path, key: str) -> None:
    with pytest.raises(ConfigError, match="--set") as caught:
        load_run_config(run_toml, [f"{key}postgresql://nurse:pa55@db/clinic"])
    assert "pa55" not in str(caught.value)


def test_a_long_value_is_cut(run_toml: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run_config(run_toml, [f"task={'x' * 3000}"])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("value", ["9" * 5000, "0x" + "f" * 5000])
def test_an_override_with_too_long_a_number_is_refused(run_toml: Path, value: str) -> None:
    with pytest.raises(ConfigError, match="too long"):
        load_run_config(run_toml, [f"seed={value}"])
