"""A configuration of one kind, given to the command of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedllm.config import RunConfig, SitePolicy, load_run_config, load_site_policy
from fedllm.config.alignment import AlignConfig, load_align_config
from fedllm.config.kinds import KINDS
from fedllm.config.parsing import _known_keys
from fedllm.errors import ConfigError
from fedllm.identity.config import FederationConfig, load_federation_config
from fedllm.pretraining.config import PretrainConfig, load_pretrain_config

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = {
    "RunConfig": EXAMPLES / "bank_intents/run.toml",
    "PretrainConfig": EXAMPLES / "pretraining/small.toml",
    "AlignConfig": EXAMPLES / "preferences/align_grpo.toml",
    "SitePolicy": EXAMPLES / "site.toml",
    "FederationConfig": EXAMPLES / "deployment/federation.toml",
}
READERS: dict[str, Callable[[Path], Any]] = {
    "RunConfig": load_run_config,
    "PretrainConfig": load_pretrain_config,
    "AlignConfig": load_align_config,
    "SitePolicy": load_site_policy,
    "FederationConfig": load_federation_config,
}
MODELS = (RunConfig, PretrainConfig, AlignConfig, SitePolicy, FederationConfig)


def test_the_marks_are_keys_of_their_kind_and_of_no_other():
    keys = {model.__name__: set(_known_keys(model)) for model in MODELS}
    assert {kind.model for kind in KINDS} == set(keys)
    for kind in KINDS:
        assert kind.marks <= keys[kind.model]
        for model, known in keys.items():
            assert model == kind.model or not kind.marks & known


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.model)
def test_a_file_of_another_kind_is_recognised(kind, reader):
    if reader == kind.model:
        return
    with pytest.raises(ConfigError) as caught:
        READERS[reader](FILES[kind.model])
    assert f"is {kind.words}, which is not read here" in str(caught.value)
    assert caught.value.remedy == kind.remedy
    assert "unknown key" not in str(caught.value)


def test_a_section_of_another_kind_in_the_right_file_is_an_unknown_key(run_toml):
    with pytest.raises(ConfigError, match="unknown key 'budget'"):
        load_run_config(run_toml, ["budget.epsilon=3"])
