"""Parties that say different things to different sites, or the same thing twice."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from support.federation import build, small_config

from fedllm.config import AllowSection
from fedllm.encryption.masks import SiteMasks
from fedllm.encryption.pack import unpack
from fedllm.encryption.plan import EncryptionPlan
from fedllm.encryption.schemes import PublicRoundKey, SecretRoundKey
from fedllm.errors import PeerError, RefusedError
from fedllm.federation.coordinator.cohort import gather_cohort
from fedllm.federation.coordinator.rounds import statement_of, with_order
from fedllm.federation.protocol.cohorts import Neighbourhood
from fedllm.federation.protocol.envelopes import verified_update
from fedllm.federation.protocol.masks import site_masks
from fedllm.federation.protocol.messages import (
    Settle,
    SettleHeader,
    Train,
    TrainHeader,
    Unmask,
    UnmaskHeader,
)
from fedllm.federation.protocol.neighbours import Around, Neighbourhoods
from fedllm.federation.protocol.round_statement import RoundStatement, round_statement
from fedllm.federation.protocol.statements import parse_statement
from fedllm.federation.protocol.terms import make_terms
from fedllm.federation.site.carrying import carry_ledger
from fedllm.federation.site.policy import check_allowed
from fedllm.privacy.ledger.audit import export_ledger

TARGET, NAMES = "site-0", ("site-0", "site-1", "site-2")


@pytest.fixture
def federation(tiny_checkpoint, tmp_path):
    return build(tmp_path, small_config(tiny_checkpoint("bert")))


class InLeague:
    """Coordinator and key authority together: any statement, signed, for one round key."""

    def __init__(self, federation, attempt=1) -> None:
        self.federation, terms = federation, federation.terms
        self.members = gather_cohort(federation, terms, 1, federation.roster, print)
        self.adapter = federation.model().adapter()
        proposal = statement_of(terms, self.members, 1, attempt, None)
        orders: list[Train] = []
        federation.tamper = lambda kind, name, m: orders.append(m) if kind == "train request" else m
        with pytest.raises(PeerError):
            federation.round(1, attempt)
        federation.tamper = lambda kind, name, message: message
        self.plan = EncryptionPlan.from_bytes(orders[0].plan)
        self.secret = SecretRoundKey.generate(self.plan)
        self.public = self.secret.public_context()
        key = PublicRoundKey.from_bytes(self.plan, self.public).fingerprint
        told = parse_statement(orders[0].header.statement)
        proposal = with_order(proposal, terms, self.adapter)
        changes = {"plan": told.plan, "key": key, "reveal_key": told.reveal_key}
        self.statement = proposal.model_copy(update=changes)

    def signed(self, statement: RoundStatement) -> dict[str, str]:
        text = statement.model_dump_json()
        signature = self.federation.identities["authority"].sign(round_statement(text)).hex()
        return {"statement": text, "signature": signature}

    def train(self, name: str, statement=None, config=None, adapter=None) -> bytes:
        """Have one site train, and return its update in its envelope."""
        terms = self.federation.terms
        order = Train(
            TrainHeader(
                statement="",
                signature="",
                config=config or terms.config_text,
                labels=terms.labels,
                bounds=terms.bounds,
                model=terms.model,
                around=self.around(name),
            ),
            self.plan.to_bytes(),
            self.public,
            (self.adapter if adapter is None else adapter).astype("<f4").tobytes(),
        )
        said = (statement or self.statement).model_copy(update=order.digests().model_dump())
        header = order.header.model_copy(update=self.signed(said))
        answer = self.federation.sites[name].train(dataclasses.replace(order, header=header))
        if answer.header.refusal is not None:
            raise answer.header.refusal.to_error(name)
        return verified_update(answer.update, said, self.plan, name, self.federation.roster)

    def around(self, name: str) -> Neighbourhood:
        return Neighbourhoods(self.statement, self.members, {}).of(name)

    def near(self, name: str, statement: RoundStatement) -> Around:
        """Return what a site takes the cohort for that accepts what it is told."""
        others = {member.name: member for member in self.members}
        return Around(others.pop(name), others, tuple(others)[: statement.neighbours])

    def masks(self, name: str, statement: RoundStatement, recover: bool, ledger="") -> SiteMasks:
        """Make a site's masks from its own keys, whatever it would say to the statement."""
        identity, near = self.federation.identities[name], self.near(name, statement)
        return site_masks(identity, ledger, statement, near, self.plan, recover)

    def slots(self, payloads) -> np.ndarray:
        """Open each update with the round's secret key, and add them up, (S,)."""
        modulus = np.uint64(self.plan.plain_modulus)
        total = np.zeros(self.plan.slots, dtype=np.uint64)
        for payload in payloads:
            fresh = SecretRoundKey(self.plan, self.secret._context)
            total = (total + fresh.decrypt_sum(payload)) % modulus
        return total

    def settle(self, name: str, statement: RoundStatement, survivors=NAMES):
        around = self.around(name)
        header = SettleHeader(**self.signed(statement), survivors=survivors, around=around)
        return self.federation.sites[name].settle(Settle(header, self.plan.to_bytes())).header

    def unmask(self, name: str, statement, survivors, signatures):
        header = UnmaskHeader(
            **self.signed(statement),
            survivors=survivors,
            signatures=signatures,
            around=self.around(name),
        )
        return self.federation.sites[name].unmask(Unmask(header, self.plan.to_bytes())).header


# --- different things to different sites ----------------------------------------------------------


def evil_adapter(message):
    adapter = np.frombuffer(message.adapter, dtype="<f4").copy()
    adapter[:] = 3e38
    return dataclasses.replace(message, adapter=adapter.tobytes())


def headed(message, **changes):
    return dataclasses.replace(message, header=message.header.model_copy(update=changes))


@pytest.mark.parametrize(
    "change",
    [
        evil_adapter,
        lambda m: headed(m, labels=m.header.labels[::-1]),
        lambda m: headed(
            m, config=m.header.config.replace("learning_rate = ", "learning_rate = 0")
        ),
        lambda m: headed(m, model="0" * 64),
    ],
)
def test_nobody_is_told_anything_but_what_was_signed(federation, change):
    """All others get an adapter at which they have no gradients: the sum were the target's."""
    federation.tamper = lambda kind, name, message: (
        change(message) if kind == "train request" and name != TARGET else message
    )
    with pytest.raises(PeerError, match="1 sites can go on, 2 are needed"):
        federation.round()


FIELDS = [name for name in RoundStatement.model_fields if name not in ("kind", "cohort")]


@pytest.mark.parametrize("field", FIELDS)
def test_masks_of_two_statements_have_nothing_in_common(federation, field):
    """Whatever the authority signs a second time, pair masks and own masks are other ones."""
    league = InLeague(federation)
    first = league.statement
    if field == "missing":
        # Of neighbours that were drawn; where none are, none can be missing.
        first = first.model_copy(update={"neighbours": 1})
    before = getattr(first, field)
    other = {str: lambda: f"0{before[1:]}" if before != "update" else "evaluation"}
    kinds = {int: lambda: before + 1, type(None): lambda: 1.0, **other}
    value = kinds[type(before)]()
    # The plan says how many slots there are, and stays; its digest is what is signed.
    second = first.model_copy(update={field: value if value != before else "1" * 64})
    assert second != first
    for recover in (True, False):
        for name in NAMES[:2]:
            one, two = (league.masks(name, said, recover) for said in (first, second))
            assert pair_seeds(one).isdisjoint(pair_seeds(two))
            assert not recover or one._own_seed != two._own_seed


@pytest.mark.parametrize("recover", [True, False])
def test_two_statements_for_one_key_open_nothing(tiny_checkpoint, tmp_path, recover):
    """The target is told one configuration and the others another."""
    config = small_config(tiny_checkpoint("bert"), encryption={"recover_dropouts": recover})
    federation = build(tmp_path, config)
    league = InLeague(federation)
    text = federation.terms.config_text
    quiet = text.replace('name = "', 'name = "quiet-', 1)
    assert quiet != text
    sent = [league.train(TARGET)] + [league.train(name, config=quiet) for name in NAMES[1:]]
    total = league.slots(sent)
    if recover:
        # Even with every own mask taken off, which no site would reveal.
        for name, said in zip(NAMES, (text, quiet, quiet), strict=True):
            told = league.statement.model_copy(update={"config": digest_of(said)})
            masks = league.masks(name, told, True, federation.ledger_id(name))
            total = (total + opposite(masks._own_seed, league.plan)) % modulus(league.plan)
    with pytest.raises(PeerError, match="updates"):
        unpack(total, league.plan, len(NAMES))


def pair_seeds(masks: SiteMasks) -> set[bytes]:
    """Return the seeds that a site shares with the others."""
    return {masks._pairs.seed(name) for name in masks._peers}


def digest_of(text: str) -> str:
    from fedllm.canonical import sha256_hex

    return sha256_hex(text)


def opposite(seed: bytes, plan: EncryptionPlan) -> np.ndarray:
    from fedllm.encryption.masks import _expand

    return _expand([(-1, seed)], plan)


def modulus(plan: EncryptionPlan) -> np.uint64:
    return np.uint64(plan.plain_modulus)


# --- the same thing twice, or less of it ----------------------------------------------------------


def test_a_statement_of_fewer_sites_is_not_settled_after_training(tiny_checkpoint, tmp_path):
    """After training for a sum of three, the authority signs again for a sum of two."""
    federation = build(tmp_path, small_config(tiny_checkpoint("bert"), rounds={"min_sites": 3}))
    league = InLeague(federation)
    for name in NAMES:
        league.train(name)
    fewer = league.statement.model_copy(update={"min_sites": 2})
    refusal = league.settle(TARGET, fewer, NAMES[:2]).refusal
    assert refusal is not None
    assert "did not take part in this attempt" in refusal.message
    assert league.settle(TARGET, league.statement).refusal is None


def test_the_sites_own_smallest_cohort_holds_in_every_exchange(tiny_checkpoint, tmp_path):
    from fedllm.federation.site.orders import OrderReader

    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    league = InLeague(federation)
    for name in NAMES:
        league.train(name)
    site = federation.sites[TARGET]
    orders: OrderReader = site._orders
    stricter = orders.allow.model_copy(update={"min_cohort": 3})
    site._orders = site._sums._orders = dataclasses.replace(orders, allow=stricter)
    for answer in (
        league.settle(TARGET, league.statement),
        league.unmask(TARGET, league.statement, NAMES, dict.fromkeys(NAMES, "00")),
    ):
        assert answer.refusal is not None
        assert "the minimum here is 3" in answer.refusal.message


def test_other_survivors_are_not_revealed_than_were_settled_on(federation):
    league = InLeague(federation)
    for name in NAMES:
        league.train(name)
    for survivors in (NAMES, NAMES[:2]):
        signatures = {
            name: league.settle(name, league.statement, survivors).signature for name in survivors
        }
        refused = league.unmask(TARGET, league.statement, survivors, signatures).refusal
        assert (refused is None) == (survivors == NAMES)


def test_a_memory_of_before_gives_no_second_update_and_no_second_sum(federation):
    """Somebody restores what a site remembers from a backup, or removes it."""
    league = InLeague(federation)
    files = federation.sites[TARGET]._files
    league.train(TARGET)
    kept = files.memory.with_suffix(".kept")
    shutil.copy(files.memory, kept)
    for name in NAMES[1:]:
        league.train(name)
    assert league.settle(TARGET, league.statement).refusal is None
    files.memory.write_bytes(kept.read_bytes())
    federation.sites[TARGET]._opened = None
    with pytest.raises(PeerError, match="was carried out before"):
        league.train(TARGET)
    refusal = league.settle(TARGET, league.statement, NAMES[:2]).refusal
    assert refusal is not None
    assert "settled on other survivors" in refusal.message


def test_an_older_ledger_without_a_memory_is_no_ledger_to_go_on_with(federation):
    """Together with the memory's loss the site would train again under the same masks."""
    league = InLeague(federation)
    files = federation.sites[TARGET]._files
    InLeague(federation, 2).train(TARGET)
    older = files.ledger.read_bytes()
    league = InLeague(federation, 3)
    league.train(TARGET)
    files.ledger.write_bytes(older)
    for forget in (files.memory.unlink, lambda: files.memory.write_text("{}")):
        forget()
        federation.sites[TARGET]._opened = None
        with pytest.raises(RefusedError, match=r"memory of its ledger .* is gone"):
            league.train(TARGET)
    assert files.ledger.read_bytes() == older


@pytest.mark.parametrize("survivors", [NAMES[:2] * 2, NAMES[::-1], (*NAMES, NAMES[2])])
def test_survivors_are_named_once_and_in_order(federation, survivors):
    """The ledger's entry says how many sites are in the sum."""
    league = InLeague(federation)
    for name in NAMES:
        league.train(name)
    refusal = league.settle(TARGET, league.statement, survivors).refusal
    assert refusal is not None
    assert "not a set that this site lets anybody open" in refusal.message


def test_an_older_ledger_is_missed(federation):
    league = InLeague(federation)
    files = federation.sites[TARGET]._files
    federation.sites[TARGET]._account()
    older = files.ledger.read_bytes()
    league.train(TARGET)
    files.ledger.write_bytes(older)
    federation.sites[TARGET]._opened = None
    with pytest.raises(PeerError):
        league.train(TARGET)
    assert files.ledger.read_bytes() == older


@pytest.mark.parametrize("recover", [True, False])
def test_an_order_of_before_a_carry_over_is_not_carried_out_again(
    tiny_checkpoint, tmp_path, recover
):
    """The new ledger does not know it, and no mask of then may serve again."""
    config = small_config(tiny_checkpoint("bert"), encryption={"recover_dropouts": recover})
    federation = build(tmp_path, config)
    league = InLeague(federation)
    league.train(TARGET)
    site = federation.sites[TARGET]
    about = (league.statement, league.near(TARGET, league.statement), league.plan, recover)
    seeds = pair_seeds(site._sums.masks(*about))
    export = tmp_path / "export.jsonl"
    export_ledger(site._files.ledger, export)
    site._files.ledger.unlink()
    carry_ledger(export, site._files, federation.identities[TARGET], federation.roster)
    site._opened = None
    with pytest.raises(PeerError, match="entry in the cohort is not its own"):
        league.train(TARGET)
    assert pair_seeds(site._sums.masks(*about)).isdisjoint(seeds)
    refusal = league.settle(TARGET, league.statement).refusal
    assert refusal is not None
    # In a cohort gathered anew it takes part, in another run.
    assert TARGET not in {member.name for member in InLeague(federation, 2).members}
    federation.terms = dataclasses.replace(federation.terms, run="run-2")
    assert InLeague(federation, 1).train(TARGET)


def test_a_round_that_is_tried_again_draws_anew_without_privacy_too(tiny_checkpoint, tmp_path):
    """Else the sums of two attempts, one site apart, would be that site's update."""
    config = small_config(
        tiny_checkpoint("bert"),
        encryption={"masks": False},
        training={"sampling_rate": 0.5, "local_steps": 2},
    )
    federation = build(tmp_path, config)
    leagues = [InLeague(federation, attempt) for attempt in (1, 2)]
    first, second = (league.slots([league.train(TARGET)]) for league in leagues)
    assert not np.array_equal(first, second)


# --- who may be in league -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "min_sites", "counted", "words"),
    [
        (0, 2, 0, None),
        (1, 3, 1, None),
        (1, 3, 0, "the run's noise counts on 0 sites"),
        (1, 2, 1, "fewer than two would be left"),
        (2, 3, 2, "fewer than two would be left"),
        (2, 4, 2, None),
        (2, 4, 3, None),
    ],
)
def test_a_policy_that_expects_colluders_asks_for_two_sites_more(
    tiny_checkpoint, allowed, min_sites, counted, words
):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy={"epsilon": 2.0, "noise": "distributed", "colluders": counted},
        rounds={"min_sites": min_sites},
        data={"sites": max(3, min_sites)},
        training={"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.5},
    )
    allow = AllowSection(colluders=allowed)
    if words is None:
        check_allowed(config, allow, "")
    else:
        with pytest.raises(RefusedError, match=words):
            check_allowed(config, allow, "")


# --- what a run promised --------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["update", "evaluation"])
def test_a_run_keeps_the_configuration_of_its_first_round(tiny_checkpoint, tmp_path, purpose):
    """Else one that promised epsilon 1 could cost 20, and evaluate as often as a ceiling holds."""
    evaluation = {"every": 1, "holdout": 0.25}
    first, second = (
        small_config(
            tiny_checkpoint("bert"),
            privacy={"epsilon": epsilon},
            training={"batch_size": batch},
            evaluation=evaluation,
        )
        for epsilon, batch in ((1.0, 8), (20.0, 16))
    )
    federation = build(tmp_path, first)
    federation.round(1, 1)
    before = federation.sites[TARGET]._account().spent()
    cohort = gather_cohort(federation, federation.terms, 2, federation.roster, print)
    federation.terms = make_terms(second, federation.model(), "run-1")
    statement = statement_of(federation.terms, cohort, 2, 2, None, purpose)
    with pytest.raises(RefusedError, match="begun with another configuration"):
        federation.run(statement, cohort)
    with pytest.raises(RefusedError, match="begun with another configuration"):
        gather_cohort(federation, federation.terms, 2, federation.roster, print)
    assert federation.sites[TARGET]._account().spent() == before
    federation.terms = make_terms(second, federation.model(), "run-2")
    assert gather_cohort(federation, federation.terms, 1, federation.roster, print)
