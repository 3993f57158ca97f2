"""No coalition that the trust table names learns a single update; without the mends one does."""

from __future__ import annotations

import itertools

import pytest
from attacks.coalitions import Stage, leaks, nothing_computed, search
from support.federation import build, records, small_config

from fedllm.canonical import sha256_hex, signing_bytes
from fedllm.federation.protocol.messages import RoundStatement
from fedllm.federation.site import orders
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.state import LedgerState

NAMES = ("site-0", "site-1", "site-2")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    nothing_computed(monkeypatch)


@pytest.fixture
def stage(tiny_checkpoint, tmp_path):
    def make(colluders=(), authority=False):
        config = small_config(
            tiny_checkpoint("bert"), rounds={"min_sites": len(colluders) + 2}, lora={"rank": 0}
        )
        data = {name: records(4) for name in NAMES}
        return Stage(build(tmp_path / "sites", config, data), colluders, authority)

    return make


@pytest.fixture
def folders(tmp_path):
    def make():
        for number in itertools.count():
            folder = tmp_path / "runs" / str(number)
            folder.mkdir(parents=True)
            yield folder

    return make()


def other_configuration(stage):
    text = stage.federation.terms.config_text
    return text.replace('name = "', 'name = "quiet-', 1)


STATEMENTS = {
    "one": lambda stage: [stage.signed()],
    "two attempts": lambda stage: [stage.signed(1), stage.signed(2)],
}
IN_LEAGUE = {
    **STATEMENTS,
    "another configuration": lambda stage: [
        stage.signed(),
        stage.signed(config=other_configuration(stage)),
    ],
    "a smaller sum": lambda stage: [stage.signed(), stage.signed(min_sites=1)],
    "other rounds": lambda stage: [stage.signed(), stage.signed(round=2)],
}


def test_what_follows_from_sums_is_found():
    from attacks.coalitions import Unknown

    a, b, c = (Unknown("u", name, 0) for name in "abc")
    s, t = (Unknown("s", "", name) for name in "st")
    assert leaks([{a: 1, b: 1}, {b: 1, c: 1}], "abc") is None
    assert leaks([{a: 1, b: 1}, {b: 1, c: 1}, {a: 1, c: 1}], "abc") == "a"
    assert leaks([{a: 1, s: 1}, {b: 1, s: -1}], "abc") is None
    assert leaks([{a: 1, s: 1, t: 1}, {b: 1, s: -1}, {b: 1}, {t: 1}], "abc") == "a"
    again = Unknown("u", "c", 1)
    assert leaks([{c: 1, s: 1}, {again: 1, s: 1}], "abc") == "c", "a difference tells too"


@pytest.mark.parametrize("name", STATEMENTS)
@pytest.mark.parametrize("colluders", [(), NAMES[2:]], ids=["no site", "one site"])
def test_the_coordinator_and_sites_learn_no_single_update(stage, folders, name, colluders):
    at = stage(colluders)
    assert search(at, STATEMENTS[name](at), folders) is None


@pytest.mark.parametrize("name", IN_LEAGUE)
@pytest.mark.parametrize("colluders", [(), NAMES[2:]], ids=["no site", "one site"])
def test_with_the_authority_they_do_not_either(stage, folders, name, colluders):
    at = stage(colluders, authority=True)
    assert search(at, IN_LEAGUE[name](at), folders) is None


# --- the mends taken out --------------------------------------------------------------------------


def other_orders_are_carried_out(patch):
    patch.setattr(orders, "require_ordered", lambda request, statement: None)


def masks_of_the_attempt(patch):
    """As masks were derived before: from the attempt, the key, the plan and the cohort."""

    def digest(self):
        which = (self.series, self.attempt, self.key, self.plan, *self.names)
        return sha256_hex(signing_bytes("before", *which))

    patch.setattr(RoundStatement, "digest", property(digest))
    patch.setattr(LedgerState, "repeats", lambda self, charge: False)


def an_order_is_carried_out_twice(patch):
    patch.setattr(LedgerState, "repeats", lambda self, charge: False)


def settled_as_often_as_asked(patch):
    patch.setattr(Ledger, "settle", lambda *_: None)
    patch.setattr("fedllm.federation.site.charging.SiteAccount.require_settled", lambda *_: None)
    patch.setattr("fedllm.encryption.masks.SiteMasks.statement", any_survivors)


def any_survivors(self, survivors):
    from fedllm.encryption.masks import survivor_statement

    self._survivors = tuple(sorted(survivors))
    return survivor_statement(self.scope, self._survivors)


@pytest.mark.parametrize(
    ("mend", "name", "colluders", "authority"),
    [
        (other_orders_are_carried_out, "one", (), False),
        (masks_of_the_attempt, "another configuration", (), True),
        (masks_of_the_attempt, "a smaller sum", NAMES[2:], True),
        (an_order_is_carried_out_twice, "two attempts", (), True),
        (settled_as_often_as_asked, "one", (), True),
    ],
)
def test_without_a_mend_the_search_finds_the_attack(
    stage, folders, monkeypatch, mend, name, colluders, authority
):
    at = stage(colluders, authority)
    statements = IN_LEAGUE[name](at)
    mend(monkeypatch)
    assert search(at, statements, folders) is not None
