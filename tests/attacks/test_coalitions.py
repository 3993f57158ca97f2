"""No coalition that the trust table names learns a single update; without the mends one does.

The folder ``coalitions`` says how this is searched for, and what the search covers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from attacks.coalitions.algebra import follows, leaks
from attacks.coalitions.recording import nothing_computed
from attacks.coalitions.searching import Found, search
from attacks.coalitions.staging import Signed, Stage
from support.federation import build, records, small_config

from fedllm.canonical import sha256_hex, signing_bytes
from fedllm.encryption.masks import SiteMasks
from fedllm.encryption.survivors import survivor_statement
from fedllm.errors import RepeatError
from fedllm.federation.protocol import masks, neighbours, statements
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.protocol.statements import read_statement
from fedllm.federation.site import orders
from fedllm.federation.site.charging import SiteAccount
from fedllm.federation.site.memory import SiteMemory
from fedllm.federation.site.orders import OrderReader
from fedllm.identity.keys import Identity
from fedllm.mechanisms.none import NoPrivacy
from fedllm.privacy.ledger.ledger import Ledger
from fedllm.privacy.ledger.state import LedgerState

PRIVATE = {
    "privacy": {"epsilon": 2.0},
    "training": {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 1.0},
}
NON_PRIVATE = {"training": {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.5}}


@dataclass(frozen=True)
class Case:
    """One search: who is in league, and which statements they have."""

    statements: Callable[[Stage], Sequence[Signed]]
    sites: int = 3
    colluders: int = 0
    authority: bool = True
    min_sites: int | None = None
    private: bool = True
    also: tuple[str, ...] = ()


@pytest.fixture
def searched(tiny_checkpoint, tmp_path, monkeypatch):
    """Search a case; ``without`` takes a mend out once the statements are signed."""

    def run(case: Case, without: Callable[[pytest.MonkeyPatch], None] | None = None) -> Found:
        minimum = case.colluders + 2 if case.min_sites is None else case.min_sites
        config = small_config(
            tiny_checkpoint("bert"),
            rounds={"min_sites": minimum, "count": 4},
            lora={"rank": 0},
            data={"sites": max(3, minimum)},
            **(PRIVATE if case.private else NON_PRIVATE),
        )
        names = [f"site-{number}" for number in range(case.sites)]
        federation = build(tmp_path / "sites", config, {name: records(1) for name in names})
        recorder = nothing_computed(monkeypatch)
        colluders = names[case.sites - case.colluders :]
        stage = Stage(federation, tmp_path / "runs", recorder, colluders, case.authority)
        if without is not None:
            without(monkeypatch)
        return search(stage, case.statements(stage), case.also)

    return run


def one(stage):
    return [stage.signed()]


def with_the_first(**changes: Any) -> Callable[[Stage], Sequence[Signed]]:
    return lambda stage: [stage.signed(), stage.signed(**changes)]


def quiet(stage):
    text = stage.quiet_configuration()
    return [stage.signed(), stage.signed(config=text, null=True)]


def null_adapter(attempt):
    def statements(stage):
        adapter = stage.null_adapter()
        return [stage.signed(), stage.signed(adapter=adapter, null=True, attempt=attempt)]

    return statements


def part_of_the_cohort(attempt):
    return lambda stage: [
        stage.signed(),
        stage.signed(cohort=stage.names[:-1], attempt=attempt, min_sites=2),
    ]


CASES = {
    "one statement": Case(one, also=("swap", "steal", "repeat")),
    "one statement, no authority": Case(one, authority=False, also=("swap",)),
    "one statement, restored": Case(one, also=("repeat", "restore")),
    "two attempts": Case(with_the_first(attempt=2)),
    "another configuration": Case(quiet),
    "another adapter": Case(null_adapter(1)),
    "fewer sites": Case(with_the_first(min_sites=1), min_sites=3),
    "one site: one statement": Case(one, colluders=1, also=("swap", "steal", "repeat")),
    "one site: two attempts": Case(with_the_first(attempt=2), colluders=1),
    "one site: fewer sites": Case(with_the_first(min_sites=1), colluders=1),
    "one site: other mask keys": Case(with_the_first(other_mask_keys=True), colluders=1),
    "one site: too small a run": Case(one, colluders=1, min_sites=2),
    "one site: told of other cohorts": Case(one, colluders=1, also=("tell",)),
    "two sites of five: one statement": Case(one, sites=5, colluders=2, also=("steal",)),
}
OTHER = {
    "told of other cohorts": Case(one, also=("tell", "steal")),
    "two sites of five: told of other cohorts": Case(one, sites=5, colluders=2, also=("tell",)),
    "two attempts, no authority": Case(with_the_first(attempt=2), authority=False, private=False),
    "a null attempt first": Case(lambda stage: null_adapter(2)(stage)[::-1]),
    "part of the cohort": Case(part_of_the_cohort(1)),
    "part of the cohort, later": Case(part_of_the_cohort(2)),
    "another round": Case(with_the_first(round=2)),
    "another round, later": Case(with_the_first(round=2, attempt=2)),
    "another key": Case(with_the_first(other_key=True)),
    "another key to reveal for": Case(
        lambda stage: [stage.signed(), stage.signed(reveal_key=stage.other_reveal_key())]
    ),
    "another purpose": Case(with_the_first(purpose="evaluation")),
    "other noise": Case(with_the_first(noise_multiplier=1.0)),
    "other labels": Case(with_the_first(labels="00" * 32)),
    "two attempts, swapped and repeated": Case(
        with_the_first(attempt=2), also=("swap", "steal", "repeat")
    ),
    "two attempts, restored": Case(with_the_first(attempt=2), also=("restore",)),
    "two attempts, exact, restored": Case(
        with_the_first(attempt=2), private=False, also=("restore",)
    ),
    "three statements": Case(
        lambda stage: [*quiet(stage), stage.signed(attempt=2)],
    ),
    "one site: two attempts, restored": Case(
        with_the_first(attempt=2), colluders=1, also=("repeat", "restore")
    ),
    "five sites: one statement": Case(one, sites=5, min_sites=4, also=("swap", "repeat")),
    "one site of five: one statement": Case(one, sites=5, colluders=1, also=("swap", "repeat")),
    "one site of five: fewer sites": Case(with_the_first(min_sites=1), sites=5, colluders=1),
    "two sites of five: two attempts": Case(with_the_first(attempt=2), sites=5, colluders=2),
    "two sites of five: another configuration": Case(quiet, sites=5, colluders=2),
    "two sites of five: other mask keys": Case(
        with_the_first(other_mask_keys=True), sites=5, colluders=2
    ),
    "two sites of five: restored": Case(one, sites=5, colluders=2, also=("repeat", "restore")),
    "three sites of five: fewer sites": Case(with_the_first(min_sites=1), sites=5, colluders=3),
    "three sites of five: two attempts": Case(with_the_first(attempt=2), sites=5, colluders=3),
}


def test_what_follows_from_sums_is_found():
    a, b, c = (("u", name, 0) for name in "abc")
    s, t = (("s", "", name) for name in "st")
    assert leaks([{a: 1, b: 1}, {b: 1, c: 1}], "abc") is None
    assert leaks([{a: 1, b: 1}, {b: 1, c: 1}, {a: 1, c: 1}], "abc") == "a"
    assert leaks([{a: 1, s: 1}, {b: 1, s: -1}], "abc") is None
    assert leaks([{a: 1, s: 1, t: 1}, {b: 1, s: -1}, {b: 1}, {t: 1}], "abc") == "a"
    again = ("u", "c", 1)
    assert leaks([{c: 1, s: 1}, {again: 1, s: 1}], "abc") == "c", "a difference tells too"
    assert follows({a: 1, c: -1}, [{a: 1, b: 1}, {b: 1, c: 1}])
    assert not follows({a: 1}, [{a: 1, b: 1}, {b: 1, c: 1}])


@pytest.mark.parametrize("name", CASES)
def test_no_coalition_learns_a_single_update(searched, name):
    # One run is refused by every site.
    assert searched(CASES[name]) == Found(None, opened=name != "one site: too small a run")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER)
def test_nor_by_other_statements_or_among_more_sites(searched, name):
    assert searched(OTHER[name]) == Found(None, opened=True)


# --- the mends taken out --------------------------------------------------------------------------


def orders_are_not_compared(patch):
    """As it was: nothing that a site is sent beside the statement was named in it."""
    patch.setattr(orders, "require_ordered", lambda request, statement: None)


def masks_of_the_attempt(patch):
    """As masks, own seeds and what is settled were bound: to attempt, key, plan and cohort."""
    patch.setattr(RoundStatement, "digest", property(_attempt))


def _attempt(statement):
    which = (statement.series, statement.attempt, statement.key, statement.plan, *statement.cohort)
    return sha256_hex(signing_bytes("before", *which))


def own_seeds_of_the_attempt(patch):
    """As own seeds were: of series, attempt and key alone; and the ledger took every charge."""
    derive = Identity.derive

    def before(self, purpose):
        if isinstance(purpose, bytes) and b"own-mask" in purpose:
            purpose = b"own-mask of run 1, attempt 1, this key"
        return derive(self, purpose)

    patch.setattr(Identity, "derive", before)
    patch.setattr(LedgerState, "repeats", lambda *_: False)


def the_smallest_sum_counts_in_training_alone(patch):
    """As it was: settling and revealing asked for no more than the statement at hand."""
    masks_of_the_attempt(patch)

    def statement(self, header):
        return read_statement(header.statement, header.signature, self.roster)

    patch.setattr(OrderReader, "asked", statement)


def attempts_draw_the_same(patch):
    """As it was without privacy: batches followed from seed, site and round."""
    random = NoPrivacy.random

    def before(self, *purpose):
        return random(self, *purpose[:3])

    patch.setattr(NoPrivacy, "random", before)


def nobody_asks_how_many_are_in_league(patch):
    allowed = orders.check_allowed

    def before(config, allow, fingerprint):
        allowed(config, allow.model_copy(update={"colluders": 0}), fingerprint)

    patch.setattr(orders, "check_allowed", before)


def attempts_stand_in_the_memory_alone(patch):
    """As it was: the ledger took every charge, and a file beside it said what was done before."""
    patch.setattr(LedgerState, "repeats", lambda *_: False)
    right = SiteAccount._reserve

    def attempts(account):
        path = account._memory._path
        return json.loads(path.read_text()) if path.exists() else {}

    def require_new(self, statement, purpose):
        if attempts(self).get(statement.run, 0) >= statement.attempt:
            raise RepeatError("carried out before")

    def reserve(self, charge, statement, config):
        number = right(self, charge, statement, config)
        self._memory._path.write_text(json.dumps({statement.run: statement.attempt}))
        return number

    patch.setattr(SiteMemory, "head", lambda self: None)
    patch.setattr(SiteMemory, "remember", lambda self, head: None)
    patch.setattr("fedllm.federation.site.site.require_carried", lambda *_: None)
    patch.setattr(SiteAccount, "_require_new", require_new)
    patch.setattr(SiteAccount, "_reserve", reserve)


def sums_are_settled_as_often_as_asked(patch):
    patch.setattr(Ledger, "settle", lambda *_: None)
    patch.setattr(SiteAccount, "require_settled", lambda *_: None)


def signatures_of_survivors_are_not_read(patch):
    def believed(scope, survivors, signatures, roster):
        return dict.fromkeys(survivors, survivor_statement(scope, survivors))

    patch.setattr("fedllm.federation.site.sums.check_settled", believed)


def any_sum_is_settled(patch):
    """As a site would that asks neither its minimum nor whether it is in the sum."""
    the_smallest_sum_counts_in_training_alone(patch)

    def words(self, survivors):
        self._survivors = tuple(sorted(survivors))
        return survivor_statement(self.scope, self._survivors)

    patch.setattr(SiteMasks, "statement", words)


def a_cohort_is_not_compared_with_its_digest(patch):
    class Equal(str):
        def __eq__(self, other):
            return True

        __hash__ = str.__hash__

    patch.setattr(neighbours, "opened_digest", lambda found, sites: Equal())


def entries_are_not_read(patch):
    patch.setattr(neighbours, "check_member", lambda *_: None)


def any_entries_will_do(patch):
    a_cohort_is_not_compared_with_its_digest(patch)
    entries_are_not_read(patch)


def sites_read_a_part_of_a_cohort(patch):
    def require(condition, complaint):
        if "leaves out" not in complaint:
            statements.require(condition, complaint)

    patch.setattr(neighbours, "require", require)


def sites_mask_for_a_part_of_a_cohort(patch):
    """As sites would that share no masks with whom they were not told of."""
    sites_read_a_part_of_a_cohort(patch)

    class Partly(SiteMasks):
        def __init__(self, scope, site, key, peers, **rest):
            unknown = {name: os.urandom(32) for name in scope.cohort if name != site}
            super().__init__(scope, site, key, unknown | dict(peers), **rest)
            self._peers = tuple(peers)

    patch.setattr(masks, "SiteMasks", Partly)


WITHOUT = [
    (orders_are_not_compared, "one statement, no authority"),  # 1
    (masks_of_the_attempt, "another configuration"),  # 2
    pytest.param(own_seeds_of_the_attempt, "another adapter", marks=pytest.mark.slow),  # 2
    (the_smallest_sum_counts_in_training_alone, "one site: fewer sites"),  # 3
    pytest.param(attempts_draw_the_same, "two attempts, no authority", marks=pytest.mark.slow),  # 4
    (nobody_asks_how_many_are_in_league, "one site: too small a run"),  # 5
    (attempts_stand_in_the_memory_alone, "one statement, restored"),  # 6
    (sums_are_settled_as_often_as_asked, "one statement"),
    (signatures_of_survivors_are_not_read, "one statement"),
    (any_sum_is_settled, "one statement"),
    (any_entries_will_do, "one site: told of other cohorts"),
    (sites_mask_for_a_part_of_a_cohort, "one site: told of other cohorts"),
]
ONE_IS_ENOUGH = [
    a_cohort_is_not_compared_with_its_digest,
    entries_are_not_read,
    sites_read_a_part_of_a_cohort,
]


@pytest.mark.parametrize(("mend", "name"), WITHOUT)
def test_without_a_mend_the_search_finds_the_attack(searched, mend, name):
    assert searched((CASES | OTHER)[name], mend).target is not None


@pytest.mark.slow
@pytest.mark.parametrize("mend", ONE_IS_ENOUGH)
def test_one_of_two_checks_of_a_cohort_is_enough(searched, mend):
    assert searched(CASES["one site: told of other cohorts"], mend) == Found(None, opened=True)
