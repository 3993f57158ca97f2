"""The page of all keys and the schemas are what the models say, and say something of each key."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

from fedllm.config import RunConfig, parse
from fedllm.config.section import Section
from fedllm.errors import ConfigError
from fedllm.reference import keys as keys_module
from fedllm.reference.examples import EXAMPLES
from fedllm.reference.keys import keys_of, meanings, section_of
from fedllm.reference.kinds import FILE_KINDS, kind_called
from fedllm.reference.page import page
from fedllm.reference.schema import schema_file, schema_of, schema_text

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {
    section.__name__: section
    for kind in FILE_KINDS
    for section in (kind.model, *filter(None, map(section_of, kind.model.model_fields.values())))
}
KEYS = [(kind, key) for kind in FILE_KINDS for key in keys_of(kind)]


def test_the_page_is_what_the_models_say():
    assert (ROOT / "docs/configuration.md").read_text() == page(), "run: make reference"


@pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)
def test_the_schemas_are_what_the_models_say(kind):
    assert schema_file(kind).read_text() == schema_text(kind), "run: make reference"
    jsonschema.Draft202012Validator.check_schema(schema_of(kind))


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_has_a_meaning_and_no_other_has(name):
    fields = SECTIONS[name].model_fields
    keys = {key for key, field in fields.items() if section_of(field) is None}
    assert set(meanings(SECTIONS[name])) == keys
    assert all(meanings(SECTIONS[name]).values())


def test_every_key_has_an_example_that_it_may_hold():
    schemas = {kind.name: schema_of(kind) for kind in FILE_KINDS}
    for kind, key in KEYS:
        assert key.example, f"{key.path} of {kind.name}: add one to examples.py"
        assert key.may_be, key.path
        where = schemas[kind.name]["properties"]
        if key.section:
            where = where[key.section]["properties"]
        value = tomllib.loads(f"x = {key.example}")["x"]
        jsonschema.validate(value, where[key.name])


def test_no_example_is_of_a_key_that_is_gone_or_has_a_default():
    known = {
        f"{name}.{field}"
        for name, section in SECTIONS.items()
        for field, info in section.model_fields.items()
        if info.is_required() or info.get_default(call_default_factory=True) in (None, (), {})
    }
    assert set(EXAMPLES) <= known


def files_of(kind):
    marks = kind.known_by.marks
    for path in sorted(ROOT.glob("examples/**/*.toml")):
        values = tomllib.loads(path.read_text())
        if set(values) & {mark.partition(".")[0] for mark in marks if "." not in mark}:
            yield path, values


@pytest.mark.parametrize("kind", FILE_KINDS, ids=lambda kind: kind.name)
def test_the_examples_fit_their_schema(kind):
    found = list(files_of(kind))
    assert found
    for path, values in found:
        jsonschema.validate(values, schema_of(kind)), path


@pytest.mark.parametrize(
    "line",
    [
        "privacy.epsilno = 8",
        "privacy.noise = 'shared'",
        "rounds.count = 0",
        "rounds.count = 2.5",
        "data.labels = 'one'",
        "lora.rank = -1",
        "name = 'a b'",
        "budget.epsilon = 1",
    ],
)
def test_an_editor_marks_what_is_refused(line):
    values = tomllib.loads(f"{line}\n")
    whole = {"name": "a", "task": "causal", "model": {"path": "m"}, "data": {"train": "t"}}
    for key, value in values.items():
        old = whole.get(key)
        whole[key] = {**old, **value} if isinstance(old, dict) else value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(whole, schema_of(kind_called("run")))
    with pytest.raises(ConfigError):
        parse(RunConfig, whole, "test")


def test_an_editor_does_not_mark_what_is_read():
    values = {
        "name": "a",
        "task": "causal",
        "model": {"path": "m"},
        "data": {"train": "t"},
        "privacy": {"epsilon": "none"},
        "lora": {"target_modules": ["q"], "ranks": [[0, 4], [500, 8]]},
    }
    jsonschema.validate(values, schema_of(kind_called("run")))
    assert parse(RunConfig, values, "test").privacy.epsilon is None
    pretraining = {"name": "a", "data": {"train": "one.txt", "text": "body"}}
    jsonschema.validate(pretraining, schema_of(kind_called("pretraining")))
    parse(kind_called("pretraining").model, pretraining, "test")


def test_a_schema_claims_no_default_that_the_recipe_changes():
    rounds = schema_of(kind_called("run"))["properties"]["rounds"]["properties"]
    assert "default" not in rounds["count"]
    assert "recipe" in rounds["count"]["description"]
    assert rounds["timeout_s"]["default"] == 3600.0


def test_no_value_is_explained_by_a_regular_expression():
    assert not re.search(r"\^|\\A|\[a-z|\]\+|\]\*", page())


def test_a_changed_default_would_be_noticed(monkeypatch):
    before = page()
    monkeypatch.setattr(keys_module, "as_toml", lambda value: "another")
    keys_of.cache_clear()
    try:
        assert page() != before
    finally:
        keys_of.cache_clear()

    class Other(Section):
        """Nothing is said of its key."""

        key: int = 1

    assert meanings(Other) == {}
