from __future__ import annotations

import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fedllm.config import RunConfig, SitePolicy, load_run_config, parse, to_toml


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
    values = {
        "name": "x",
        "task": "classification",
        "model": {"path": "base"},
        "data": {"train": "train.jsonl", "text": text},
    }
    config = parse(RunConfig, values, "x")
    assert tomllib.loads(to_toml(config))["data"]["text"] == text
