"""What a site remembers of its rounds, and a file of it that is damaged."""

from __future__ import annotations

import json

import pytest

from fedllm.errors import RefusedError, RepeatError
from fedllm.federation.site.memory import SiteMemory

GOOD = {"attempt": 1, "survivors": ["anne"]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "site" / "memory.json"


def test_one_damaged_entry_among_good_ones_is_enough_to_refuse(path):
    path.parent.mkdir()
    flaws = ({}, [], {**GOOD, "attempt": True}, {**GOOD, "survivors": [1]}, {**GOOD, "more": 1})
    for flaw in flaws:
        path.write_text(json.dumps({"a": GOOD, "b": flaw}))
        for ask in (SiteMemory(path).used, lambda: SiteMemory(path).begin("c", 1)):
            with pytest.raises(RefusedError, match="damaged") as caught:
                ask()
            assert "backup" in caught.value.remedy
    path.write_text(json.dumps({"a": GOOD, "b": {"attempt": 2, "survivors": None}}))
    assert SiteMemory(path).used()


def test_no_attempt_is_trained_twice_nor_settled_two_ways(path):
    memory = SiteMemory(path)
    assert not memory.used()
    memory.begin("r", 1)
    assert (memory.used(), memory.knows("r"), memory.knows("s")) == (True, True, False)
    with pytest.raises(RepeatError, match="attempt 1"):
        SiteMemory(path).begin("r", 1)
    with pytest.raises(RefusedError, match="not settled"):
        memory.settled("r", 1)
    with pytest.raises(RefusedError, match="did not train"):
        memory.settle("r", 2, ("anne",))
    for _ in range(2):
        memory.settle("r", 1, ("anne", "bob"))
    with pytest.raises(RefusedError, match="other survivors"):
        memory.settle("r", 1, ("anne",))
    assert SiteMemory(path).settled("r", 1) == ("anne", "bob")
    with pytest.raises(RefusedError, match="not settled"):
        memory.settled("r", 2)
    memory.begin("r", 2)
    with pytest.raises(RefusedError, match="not settled"):
        memory.settled("r", 2)
