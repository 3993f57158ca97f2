"""The kept draw of neighbours: seeds, who follows from them, and what a site is told of others."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import replace

import pytest
from golden.kept import MANY, damaged, identity, read
from golden.kept_rounds import DRAW, LEDGERS, MANY_PLAN, MANY_ROSTER, message, said
from golden.test_rounds import site
from support.federation import own_draw

from fedllm.canonical import canonical_json, sha256, signing_bytes
from fedllm.encryption.masks import SiteMasks
from fedllm.errors import PeerError
from fedllm.federation.protocol.cohorts import Neighbourhood
from fedllm.federation.protocol.masks import mask_scope, site_masks
from fedllm.federation.protocol.neighbours import (
    Around,
    Neighbourhoods,
    own_seed,
    read_neighbourhood,
)
from fedllm.federation.protocol.statements import make_member, read_statement
from fedllm.federation.protocol.wire import digest, parse_header

ASKED = message("Draw", DRAW).header
STATEMENT = read_statement(ASKED.statement, ASKED.signature, MANY_ROSTER)
IDS = read(DRAW / "ledgers.json")
SEEDS = {name: message(f"Drawn-{name}", DRAW).header.seed for name in MANY}
KEPT = (DRAW / "around-anne.json").read_text()
# Known answers: they follow from keys that anybody can make.
DRAWN = {
    "anne": ("dora", "gus"),
    "bob": ("anne", "dora"),
    "carl": ("dora", "frida"),
    "dora": ("anne", "emil"),
    "emil": ("frida", "gus"),
    "frida": ("anne", "carl"),
    "gus": ("carl", "emil"),
}
MASK = "96be3227a25cbe42514d49752f5ea5e3239d3f34302b97ed70f4530b825d7793"


def told(text: str = KEPT) -> Around:
    found = parse_header(Neighbourhood, text)
    return read_neighbourhood(found, STATEMENT, identity("anne"), IDS["anne"], MANY_ROSTER)


def masks(recover: bool) -> SiteMasks:
    about = (IDS["anne"], STATEMENT, told(), MANY_PLAN)
    return site_masks(identity("anne"), *about, recover)


def test_the_statement_says_who_shares_masks():
    assert (STATEMENT.cohort, STATEMENT.attempt) == (MANY, 3)
    assert (STATEMENT.neighbours, STATEMENT.missing, STATEMENT.colluders) == (2, 1, 1)
    assert STATEMENT.plan == MANY_PLAN.fingerprint()


@pytest.mark.parametrize("name", MANY)
def test_a_site_draws_as_it_drew(name):
    purpose = signing_bytes("fedllm.draw.v1", STATEMENT.digest, IDS[name])
    seed = own_seed(identity(name), IDS[name], STATEMENT)
    assert seed == identity(name).derive(purpose)
    assert seed.hex() == SEEDS[name]
    assert own_draw(identity(name), IDS[name], STATEMENT) == DRAWN[name]


def test_a_site_with_its_kept_ledger_answers_with_its_seed(tmp_path):
    anne = site(tmp_path)
    anne._orders = dataclasses.replace(anne._orders, roster=MANY_ROSTER)
    assert IDS["anne"] == LEDGERS["anne"]
    assert anne.draw(message("Draw", DRAW)).to_wire() == message("Drawn-anne", DRAW).to_wire()


def test_a_site_is_told_of_those_around_it_as_it_was():
    members = [make_member(identity(name), IDS[name], "run-1", 0) for name in MANY]
    found = Neighbourhoods(STATEMENT, members, SEEDS).of("anne")
    assert found.model_dump_json() == KEPT
    around = told()
    assert (around.own, around.drawn) == (members[0], DRAWN["anne"])
    drew = {name for name, drawn in DRAWN.items() if "anne" in drawn}
    assert set(around.others) == drew | set(DRAWN["anne"])


def test_what_it_was_told_leads_to_the_signed_digest():
    """By places: 0, 1, 3, 5 and 6 are known, 2 and 4 are not."""
    kept = read(DRAW / "around-anne.json")
    leaves = {
        one["place"]: sha256(signing_bytes("fedllm.cohort-leaf.v1", canonical_json(one["member"])))
        for one in kept["near"]
    }
    assert sorted(leaves) == [0, 1, 3, 5, 6]
    leaves[2], leaves[4] = map(bytes.fromhex, kept["siblings"])

    def node(left: bytes, right: bytes) -> bytes:
        return sha256(signing_bytes("fedllm.cohort-node.v1", left, right))

    pairs = [node(leaves[place], leaves[place + 1]) for place in (0, 2, 4)]
    assert node(node(*pairs[:2]), node(pairs[2], leaves[6])).hex() == STATEMENT.members


def test_a_wrong_byte_of_it_is_noticed_or_changes_nothing():
    """With another seed a site may still have drawn this one; and it need not, if drawn itself."""
    kept = KEPT.encode()
    others = [KEPT.index(SEEDS[one["member"]["name"]]) for one in json.loads(KEPT)["near"][1:]]
    for place, changed in zip(range(0, len(kept), 7), damaged(kept, every=7), strict=True):
        if any(start <= place < start + 64 for start in others):
            with contextlib.suppress(PeerError):
                # Shares of what the other leaves are bound to the seed itself.
                assert replace(told(changed.decode()), seeds={}) == replace(told(), seeds={})
            continue
        with pytest.raises(PeerError):
            told(changed.decode(errors="replace"))


def test_masks_are_shared_with_those_alone():
    scope = mask_scope(STATEMENT, MANY_PLAN)
    names = sha256(signing_bytes("fedllm.names.v1", *MANY))
    about = (STATEMENT.digest, MANY_PLAN.fingerprint(), names)
    assert scope.to_bytes() == signing_bytes("fedllm.mask-scope.v4", *about, 2, 1)
    assert digest(masks(recover=True).mask_for_update().astype("<u8").tobytes()) == MASK
    found = masks(recover=True)
    survivors = tuple(name for name in MANY if name not in ("carl", "gus"))
    words = found.statement(survivors)
    assert found.answering(survivors) == ("dora",)
    assert set(found.reveal({"dora": words}).pair_seeds) == {"gus"}


def test_it_is_signed_as_every_statement():
    assert said("Draw", DRAW) == {"statement": ASKED.statement, "signature": ASKED.signature}
    with pytest.raises(PeerError):
        read_statement(
            ASKED.statement.replace('"missing":1', '"missing":2'), ASKED.signature, MANY_ROSTER
        )
