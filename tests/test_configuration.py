"""The page of all keys is what the models say, and says something of each."""

from __future__ import annotations

import re

import configuration
import pytest
from configuration import KINDS, PAGE, meanings, page, section_of

SECTIONS = {
    section.__name__: section
    for _, _, model in KINDS
    for section in (model, *filter(None, map(section_of, model.model_fields.values())))
}


def test_the_page_is_what_the_models_say():
    assert PAGE.read_text() == page(), "run: make reference"


@pytest.mark.parametrize("name", SECTIONS)
def test_every_key_has_a_meaning_and_no_other_has(name):
    fields = SECTIONS[name].model_fields
    keys = {key for key, field in fields.items() if section_of(field) is None}
    assert set(meanings(SECTIONS[name])) == keys
    assert all(meanings(SECTIONS[name]).values())


def test_no_value_is_explained_by_a_regular_expression():
    assert not re.search(r"\^|\\A|\[a-z|\]\+|\]\*", page())


def test_a_changed_default_would_be_noticed(monkeypatch):
    before = page()
    monkeypatch.setattr(configuration, "default", lambda field: "another")
    assert page() != before
