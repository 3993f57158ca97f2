"""``lora.method``, and the older key for one of its values."""

from __future__ import annotations

import pytest

from fedllm.config import RunConfig, parse, parse_toml, to_toml
from fedllm.errors import ConfigError
from fedllm.runs.folder import config_digest


def config(**lora):
    values = {
        "name": "a",
        "task": "classification",
        "model": {"path": "m"},
        "data": {"train": "t.jsonl"},
        "lora": lora,
    }
    return parse(RunConfig, values, "run.toml")


@pytest.mark.parametrize(
    ("lora", "kind"),
    [
        ({}, "lora"),
        ({"freeze_a": True}, "ffa"),
        ({"freeze_a": True, "method": "ffa"}, "ffa"),
        ({"freeze_a": True, "method": "lora"}, "ffa"),
        ({"freeze_a": False, "method": "ffa"}, "ffa"),
        ({"method": "fedsvd"}, "fedsvd"),
    ],
    ids=str,
)
def test_the_older_key_is_still_read(lora, kind):
    asked = config(**lora)
    assert asked.lora.kind == kind
    assert parse(RunConfig, parse_toml(to_toml(asked), "it"), "it") == asked


@pytest.mark.parametrize("method", ["ffa_orthonormal", "eva", "rolora", "fedsvd", "core"])
def test_two_keys_that_contradict_each_other_are_refused(method):
    with pytest.raises(ConfigError, match="freeze_a means method = 'ffa'"):
        config(method=method, freeze_a=True)


def test_a_run_that_was_begun_before_there_were_methods_is_the_same_run():
    # Its digest counts what does not stand at its default.
    assert config_digest(config(freeze_a=True)) != config_digest(config(method="ffa"))
    assert config_digest(config(method="lora")) == config_digest(config(rank=8))


def test_another_name_is_told_with_those_that_there_are():
    with pytest.raises(ConfigError, match=r"'lora', 'ffa', .*'bitfit' or 'layers'"):
        config(method="dora")


def test_where_a_run_starts_is_known_by_its_name_alone():
    def at(path):
        asked = config()
        model = asked.model.model_copy(update={"start": path})
        return config_digest(asked.model_copy(update={"model": model}))

    assert at("/a/runs/first") == at("/b/runs/first") != at("/a/runs/second")
    assert at("/a/runs/first") != config_digest(config())


@pytest.mark.parametrize("method", ["ffa", "ffa_orthonormal", "eva", "rolora", "fedsvd", "core"])
def test_a_method_without_an_adapter_is_refused(method):
    """Whoever sets it on an example that trains the head alone would compare nothing."""
    with pytest.raises(ConfigError, match="rank = 0 trains the head alone"):
        config(rank=0, method=method)
    assert config(rank=0).lora.kind == "lora"
    # Runs of before could say so.
    assert config(rank=0, freeze_a=True).lora.rank == 0
