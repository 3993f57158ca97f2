from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.errors import PeerError
from fedllm.federation.protocol.cohorts import CohortMember, Neighbour, Neighbourhood
from fedllm.federation.protocol.messages import (
    Drawn,
    DrawnHeader,
    Join,
    OpenRound,
    OpenRoundHeader,
    Train,
    Trained,
    TrainedHeader,
    TrainHeader,
    Unmask,
    UnmaskHeader,
)
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import parse_statement
from fedllm.federation.protocol.wire import parse_header

text = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.integers(0, 1 << 40)
members = st.builds(CohortMember, name=text, mask_key=text, units=numbers, signature=text)
neighbourhoods = st.builds(
    Neighbourhood,
    place=st.integers(),
    near=st.lists(
        st.builds(Neighbour, place=st.integers(), member=members, seed=text), max_size=3
    ).map(tuple),
    siblings=st.lists(text, max_size=3).map(tuple),
)
statements = st.builds(
    RoundStatement,
    run=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True),
    round=st.integers(),
    attempt=st.integers(),
    rounds=st.integers(),
    cohort=st.lists(text, max_size=4).map(tuple),
    members=text,
    neighbours=numbers,
    missing=numbers,
    colluders=numbers,
    min_sites=st.integers(),
    plan=text,
    key=text,
    reveal_key=text,
    config=text,
    noise_multiplier=st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
orders = st.builds(
    Train,
    header=st.builds(
        TrainHeader,
        statement=text,
        signature=text,
        config=text,
        labels=st.lists(text, max_size=3).map(tuple),
        bounds=st.lists(
            st.tuples(st.integers(), st.floats(allow_nan=False, allow_infinity=False)), max_size=3
        ).map(tuple),
        model=text,
        around=neighbourhoods,
    ),
    plan=st.binary(max_size=40),
    public_key=st.binary(max_size=40),
    adapter=st.binary(max_size=40),
)
questions = st.builds(
    Unmask,
    header=st.builds(
        UnmaskHeader,
        statement=text,
        signature=text,
        survivors=st.lists(text, max_size=3).map(tuple),
        signatures=st.dictionaries(text, text, max_size=3),
        around=neighbourhoods,
    ),
    plan=st.binary(max_size=40),
)
proposals = st.builds(
    OpenRound,
    header=st.builds(
        OpenRoundHeader, statement=text, members=st.lists(members, max_size=3).map(tuple)
    ),
    plan=st.binary(max_size=40),
)
draws = st.builds(Drawn, header=st.builds(DrawnHeader, site=text, seed=text))


@pytest.mark.parametrize(
    "run",
    [
        "",
        "a b",
        "a/evaluation",
        "a" * 65,
        "a\n",
        ".",
        "-a",
        "ä",
        "\N{CYRILLIC SMALL LETTER A}",
        "a\0",
    ],
)
def test_a_run_that_no_journal_could_name_is_refused(run):
    header = {"run": "a", "round": 1, "config": "", "labels": [], "model": "", "adapter_length": 1}
    assert Join.from_wire(json.dumps(header), {}).header.run == "a"
    with pytest.raises(PeerError, match="JoinHeader is malformed at run"):
        Join.from_wire(json.dumps({**header, "run": run}), {})
    texts = ("plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")
    texts += ("members",)
    statement = dict.fromkeys(texts, "") | {
        **{name: 1 for name in ("round", "attempt", "rounds", "min_sites")},
        "run": "a",
        "cohort": [],
    }
    assert parse_statement(json.dumps(statement)).run == "a"
    with pytest.raises(PeerError, match="RoundStatement is malformed at run"):
        parse_statement(json.dumps({**statement, "run": run}))


@given(orders | questions | proposals | draws)
def test_a_message_survives_the_wire(message):
    assert type(message).from_wire(*message.to_wire()) == message


@given(statements)
def test_a_statement_survives_json(statement):
    assert parse_header(RoundStatement, statement.model_dump_json()) == statement


@given(st.text(max_size=100), st.text(max_size=100))
def test_any_text_is_read_or_refused_without_repeating_it(before, after):
    # A mark that no message of ours contains; short pieces of the text could stand in one.
    mark = "private-7f3a"
    for header in (before + mark + after, json.dumps({"site": [mark], before + "?": after})):
        with pytest.raises(PeerError) as caught:
            Trained.from_wire(header, {"update": b""})
        assert mark not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"site": 3}, "site"),
        ({"extra": 1}, "extra"),
        ({"site": None}, "site"),
        ({"refusal": {"kind": "x"}}, "refusal"),
    ],
)
def test_types_and_keys_are_strict(change, words):
    header, blobs = Trained(TrainedHeader(site="a"), b"").to_wire()
    with pytest.raises(PeerError, match=words):
        Trained.from_wire(json.dumps({**json.loads(header), **change}), blobs)


@pytest.mark.parametrize("blobs", [{}, {"update": b"", "more": b""}, {"other": b""}])
def test_parts_are_strict(blobs):
    with pytest.raises(PeerError, match="has the parts"):
        Trained.from_wire('{"site": "a"}', blobs)


def test_the_first_five_wrong_places_are_named_in_order_and_no_value_is():
    places = ["zeta", "alpha", "kappa", "beta", "omega", "delta"]
    with pytest.raises(PeerError) as caught:
        parse_header(Refusal, json.dumps(dict.fromkeys(places, "secret")))
    assert "malformed at alpha, beta, delta, kappa, kind" in caught.value.message
    assert caught.value.message.endswith("kind")
    assert "secret" not in str(caught.value)
