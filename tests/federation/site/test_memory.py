"""What a site remembers of its ledger, and a file of it that is damaged or of before."""

from __future__ import annotations

import json

import pytest

from fedllm.errors import RefusedError
from fedllm.federation.site.memory import SiteMemory
from fedllm.privacy.ledger.entries import Head

BEFORE = {"attempt": 1, "survivors": ["anne"]}
HEAD = "3:" + "0a" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site" / "memory.json"


@pytest.mark.parametrize(
    "content",
    [
        {"a": BEFORE, "b": {}},
        {"a": BEFORE, "b": []},
        {"a": BEFORE, "b": {**BEFORE, "more": 1}},
        {"format": 3, "ledger": HEAD},
        {"format": 2},
        {"format": 2, "ledger": HEAD, "more": 1},
        {"format": 2, "ledger": "3:0a"},
        {"format": 2, "ledger": 3},
        [],
    ],
)
def test_a_damaged_memory_is_refused(path, content):
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    memory = SiteMemory(path)
    for ask in (memory.used, memory.head, lambda: memory.remember(Head(9, "0b" * 32))):
        with pytest.raises(RefusedError, match="damaged") as caught:
            ask()
        assert "backup" in caught.value.remedy
    assert json.loads(path.read_text()) == content


def test_a_memory_of_before_tells_that_the_site_has_trained(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"a": BEFORE, "b/evaluation": {"attempt": 2, "survivors": None}}))
    memory = SiteMemory(path)
    assert (memory.used(), memory.head()) == (True, None)
    memory.remember(Head.parse(HEAD))
    assert SiteMemory(path).head() == Head.parse(HEAD)


def test_it_goes_forward_only_until_another_ledger_is_begun(path):
    memory = SiteMemory(path)
    assert (memory.used(), memory.head()) == (False, None)
    memory.remember(Head.parse(HEAD))
    memory.remember(Head(2, "0b" * 32))
    assert (memory.used(), SiteMemory(path).head()) == (True, Head.parse(HEAD))
    memory.remember(Head(4, "0c" * 32))
    assert memory.head() == Head(4, "0c" * 32)
    memory.begin_anew(Head(1, "0d" * 32))
    assert SiteMemory(path).head() == Head(1, "0d" * 32)


def test_folders_of_a_new_memory_are_made(path):
    for name, method in (("one", SiteMemory.remember), ("two", SiteMemory.begin_anew)):
        memory = SiteMemory(path.parent / name / "memory.json")
        method(memory, Head.parse(HEAD))
        assert memory.head() == Head.parse(HEAD)


def test_a_memory_that_cannot_be_read_is_refused(path):
    path.mkdir(parents=True)
    with pytest.raises(RefusedError, match="damaged"):
        SiteMemory(path).head()
