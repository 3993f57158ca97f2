"""What left a site, in plain words, from the lines that its service wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.overview import sent_line

from fedllm.overview.sent import traffic_of

BESIDE = {"run": "run-1", "name": "?", "round": 1, "rounds": 10, "attempt": 1}


def test_an_update_is_told_by_what_it_is_how_much_and_how_it_is_protected():
    (found,) = traffic_of([sent_line(1)]).sent
    assert found.what == "36,864 numbers: changes of the shared model's trained numbers; 221 kB"
    assert found.how == (
        "encrypted (BFV); masked, so that no single site's part can be opened; with all of the "
        "noise added here"
    )
    assert (found.encrypted, found.masked, found.noised) == (True, True, True)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"scheme": "none", "masked": False}, "not encrypted; not masked: who holds"),
        ({"scheme": "ckks", "masked": False}, "encrypted (CKKS); not masked"),
        ({"noise": "distributed"}, "with this site's share of the noise"),
        ({"noise": "none"}, "without noise: not differentially private"),
    ],
)
def test_what_is_weaker_is_said_to_be(said, words):
    (found,) = traffic_of([sent_line(1, **said)]).sent
    assert words in found.how
    assert (found.encrypted, found.masked, found.noised) == (
        said.get("scheme", "bfv") != "none",
        said.get("masked", True),
        said.get("noise", "local") != "none",
    )


def test_an_evaluation_is_told_as_one():
    (found,) = traffic_of([sent_line(1, purpose="evaluation", values=1)]).sent
    assert found.what.startswith("1 numbers: sums of how well the shared model did on held-out")


def test_other_answers_of_a_round_count_beside_its_update():
    lines = [
        {"at": "x", "what": "answered", "message": "join", **BESIDE, "size_bytes": 1000},
        sent_line(1),
        *(
            {
                **BESIDE,
                "at": "x",
                "what": "answered",
                "message": message,
                "purpose": "training",
                "size_bytes": size,
            }
            for message, size in (("ready", 60), ("settle", 500), ("unmask", 40))
        ),
        sent_line(2),
    ]
    second, first = traffic_of(lines).sent
    assert (first.round, first.other_bytes) == (1, 600)
    assert (second.round, second.other_bytes) == (2, 0)


def test_refusals_are_told_under_the_runs_name():
    refused = {"at": "x", "what": "refused", "message": "settle", "purpose": "training"}
    lines = [
        {"at": "x", "what": "answered", "message": "join", **BESIDE, "name": "ward"},
        {**BESIDE, **refused, "reason": "PeerError: no"},
        {**BESIDE, **refused, "run": "other", "round": "?", "reason": "BudgetError: spent"},
    ]
    later, earlier = traffic_of(lines).refused
    assert (earlier.name, earlier.message, earlier.round) == ("ward", "settle", "1")
    assert (later.name, later.round, later.reason) == ("other", "?", "BudgetError: spent")


@pytest.mark.parametrize(
    "line",
    [
        {},
        {"what": "sent"},
        {"what": 3},
        {"what": "refused", "run": []},
        {"what": "answered", "run": "run-1", "round": {}, "size_bytes": "x"},
        sent_line(1, values=-1),
        sent_line(1, values=True),
        sent_line(1, scheme="rot13"),
        sent_line(1, noise=[]),
        sent_line(1, purpose="other"),
        sent_line(1, at=None),
        sent_line(1, name=7),
    ],
)
def test_a_line_that_says_nothing_hides_no_other(line):
    found = traffic_of([sent_line(1), line, sent_line(2)])
    assert [one.round for one in found.sent] == [2, 1]
    assert not found.refused


def test_words_of_others_steer_no_terminal():
    (found,) = traffic_of([sent_line(1, name="\x1b[2J\u202e")]).sent
    assert found.name == "\\x1b[2J\\u202e"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=3)
    | st.sampled_from(["sent", "?"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=3,
)
KEYS = [*sent_line(1), "message", "reason"]


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES), max_size=4))
def test_no_line_whatever_it_says_stops_the_page(lines):
    changed = [sent_line(1, **line) for line in lines]
    found = traffic_of([*lines, *changed])
    assert len(found.sent) <= 2 * len(lines)
    for one in found.sent:
        assert one.what
        assert one.how
