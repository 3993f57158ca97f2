"""A deployed key authority's words: what it tells its coordinator, and what its own journal."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from support.federation import build, small_config

from fedllm.encryption.plan import make_plan
from fedllm.encryption.schemes import SecretRoundKey
from fedllm.errors import (
    DataError,
    FedllmError,
    PeerError,
    RefusedError,
    RepeatError,
    StorageError,
)
from fedllm.federation.authority.authority import Authority
from fedllm.federation.authority.round_log import RoundLog, read_log
from fedllm.federation.protocol.cohorts import cohort_digest
from fedllm.federation.protocol.messages import OpenRound, OpenRoundHeader
from fedllm.federation.protocol.statements import parse_statement
from fedllm.federation.site.files import SiteFiles
from fedllm.federation.site.site import Site


@pytest.fixture
def deployed(tiny_checkpoint, tmp_path):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")), full_errors=False)
    said: list[str] = []
    federation.authority._say = said.append
    identity = federation.identities["authority"]
    federation.authority._opened = RoundLog(tmp_path / "state" / "rounds.jsonl", identity)
    return federation, said


ROUND = "run run-1, round 1 of 2, attempt 1, update, 3 sites"


def test_what_it_does_stands_in_its_journal(deployed):
    federation, said = deployed
    federation.round()
    assert said == [f"{ROUND}: a key was made", f"{ROUND}: the sum of 3 sites was opened"]
    authority = federation.identities["authority"]
    logged = read_log(federation.authority._opened._path, authority.public_bytes())
    assert [entry.event for entry in logged] == ["opened", "summed"]
    assert logged[1].sites == ("site-0", "site-1", "site-2")


def test_a_round_asked_twice_is_refused_in_public_words(deployed):
    federation, said = deployed
    federation.round()
    with pytest.raises(RepeatError) as caught:
        federation.round()
    assert caught.value.message == "the key authority: round 1, attempt 1 was opened before"
    assert caught.value.remedy == "ask under a new attempt"
    assert said[-1] == f"{ROUND}: not opened: RepeatError: round 1, attempt 1 was opened before"


def test_a_cohort_that_is_too_small_is_refused_in_public_words(deployed):
    federation, _ = deployed
    with pytest.raises(RefusedError) as caught:
        federation.round(min_sites=1)
    assert caught.value.message == (
        "the key authority: a sum of 1 sites could be opened; the minimum here is 2"
    )
    assert caught.value.remedy == "raise rounds.min_sites"


def test_other_refusals_are_told_by_their_kind_and_name_its_own_log(deployed):
    federation, said = deployed
    with pytest.raises(PeerError) as caught:
        federation.round(min_sites=9)
    assert caught.value.message == "the key authority: PeerError"
    assert caught.value.remedy == "the key authority's own log has the details"
    assert said[-1].endswith("PeerError: a cohort of 3 sites cannot give a sum of 9")


def test_a_full_disk_is_told_by_its_kind_and_no_key_is_made(deployed, monkeypatch):
    federation, said = deployed
    made = []
    federation.authority._make_key = made.append

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/kit/state/rounds.jsonl")

    monkeypatch.setattr(federation.authority._opened, "_append", full)
    with pytest.raises(StorageError) as caught:
        federation.round()
    assert caught.value.message == "the key authority: StorageError"
    assert made == []
    assert said == [
        f"{ROUND}: not opened: StorageError: /kit/state/rounds.jsonl: No space left on device"
    ]


def test_nonsense_does_not_steer_the_journal(deployed):
    federation, said = deployed
    answer = federation.authority.open_round(
        OpenRound(OpenRoundHeader(statement="{\n2026-01-01 all is well\n", members=()), b"")
    )
    assert answer.header.refusal.kind == "PeerError"
    (line,) = said
    assert "\n" not in line
    assert line.startswith("a round whose statement cannot be read: not opened: PeerError")


def test_a_sum_of_a_round_that_is_not_open_is_refused(deployed):
    federation, said = deployed
    original = federation.authority.open_sum

    def forgetful(request):
        federation.authority.forget()
        return original(request)

    federation.authority.open_sum = forgetful
    with pytest.raises(FedllmError) as caught:
        federation.round()
    assert caught.value.message == "the key authority: this round is not open"
    assert said[-1] == f"{ROUND}: its sum was not opened: RepeatError: this round is not open"


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), ValueError("closed file")])
def test_a_journal_that_cannot_be_written_costs_no_answer(deployed, error):
    federation, _ = deployed

    def broken(text):
        raise error

    federation.authority._say = broken
    assert len(federation.round().survivors) == 3
    with pytest.raises(RepeatError):
        federation.round()


class Key:
    """A round's key that says when it is wiped."""

    def __init__(self, plan, wiped: list) -> None:
        self._key, self._wiped = SecretRoundKey.generate(plan), wiped
        self.plan = plan

    def public_context(self) -> bytes:
        return self._key.public_context()

    def wipe(self) -> None:
        self._wiped.append(self)


def test_the_key_of_a_round_that_was_left_is_wiped_before_there_is_another(deployed):
    federation, _ = deployed
    authority = federation.authority
    made, wiped = [], []

    def make_key(plan):
        assert wiped == made, "no two keys at once"
        made.append(Key(plan, wiped))
        return made[-1]

    authority._make_key = make_key
    federation.tamper = lambda kind, name, message: None if kind == "train" else message
    for attempt in (1, 2):
        with pytest.raises(PeerError):
            federation.round(attempt=attempt)
    assert len(made) == 2
    assert wiped == made[:1]
    # Also by a request that opens no other.
    with pytest.raises(RepeatError):
        federation.round(attempt=2)
    assert wiped == made


@pytest.mark.parametrize("fewer", [False, True])
def test_a_sum_of_as_many_sites_as_the_authority_asks_for_is_opened(
    tiny_checkpoint, tmp_path, fewer
):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert"), rounds={"min_sites": 2}))
    federation.authority._min_cohort = 2
    gone = {"site-0"} | ({"site-1"} if fewer else set())
    federation.tamper = lambda kind, name, message: (
        None if kind == "train" and name in gone else message
    )
    if fewer:
        with pytest.raises(PeerError, match="1 sites can go on, 2 are needed"):
            federation.round()
    else:
        assert federation.round().survivors == ("site-1", "site-2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"survivors": ("site-1", "site-0", "site-2")}, "the survivors are not in order"),
        ({"survivors": ("site-0", "site-1", "site-1")}, "the survivors are not in order"),
        ({"survivors": ("site-0", "site-1", "site-9")}, "a survivor is not in the cohort"),
        ({"survivors": ("site-0", "site-1")}, "a survivor's signature is missing"),
        ({"reveals": ("00", "00")}, "a survivor's reveal is missing"),
        ({"signatures": ()}, "a survivor's signature is missing"),
    ],
    ids=["exchanged", "twice", "stranger", "left out", "unrevealed", "unsigned"],
)
def test_only_survivors_of_the_cohort_in_their_order_have_their_sum_opened(
    deployed, changes, words
):
    federation, said = deployed
    original = federation.authority.open_sum

    def other(request):
        return original(replace(request, header=request.header.model_copy(update=changes)))

    federation.authority.open_sum = other
    with pytest.raises(PeerError):
        federation.round()
    assert said[-1] == f"{ROUND}: its sum was not opened: PeerError: {words}"


def test_texts_of_errors_leave_only_where_a_simulation_asks_for_them(deployed):
    federation, _ = deployed
    identity, requests = federation.identities["site-0"], []
    federation.tamper = lambda kind, name, message: requests.append(message) or message
    federation.round()
    authority = Authority(federation.identities["authority"], federation.roster, 2)
    nonsense = OpenRound(OpenRoundHeader(statement="nonsense", members=()), b"")
    assert authority.open_round(nonsense).header.refusal.message == "PeerError"

    def unreadable(task):
        raise DataError("row 7: 'secret of a patient'")

    site = Site(
        identity=identity,
        roster=federation.roster,
        policy=federation.sites["site-0"]._policy,
        files=SiteFiles(*(federation.folder / f"other.{end}" for end in ("sqlite", "json", "log"))),
        model_path=federation.config.model.path,
        records=unreadable,
        models=federation.models,
    )
    refusal = site.join(requests[0]).header.refusal
    assert (refusal.kind, "secret" in str(refusal)) == ("DataError", False)
    assert "secret of a patient" in (federation.folder / "other.log").read_text()


def test_a_key_is_made_for_the_plan_of_the_round_alone(deployed):
    federation, said = deployed
    plans = []
    make_key = federation.authority._make_key
    federation.authority._make_key = lambda plan: plans.append(plan) or make_key(plan)
    federation.round()
    (plan,) = plans
    small = make_plan(plan.scheme, plan.bits, 2, plan.length, plan.masked)
    finer = make_plan(plan.scheme, plan.bits - 1, 3, plan.length, plan.masked)
    original = federation.authority.open_round
    for asked, sent, words in (
        (small, small, "the plan is for a smaller cohort"),
        (finer, plan, "the plan is not that of the round"),
    ):

        def other(request, asked=asked, sent=sent):
            statement = parse_statement(request.header.statement)
            text = statement.model_copy(update={"plan": asked.fingerprint()}).model_dump_json()
            header = request.header.model_copy(update={"statement": text})
            return original(OpenRound(header, sent.to_bytes()))

        federation.authority.open_round = other
        with pytest.raises(PeerError):
            federation.round(attempt=2)
        assert said[-1].endswith(f"not opened: PeerError: {words}")
    assert plans == [plan]


def test_no_key_is_made_for_entries_that_their_sites_did_not_sign(deployed):
    federation, said = deployed
    plans: list[object] = []
    make_key = federation.authority._make_key
    federation.authority._make_key = lambda plan: plans.append(plan) or make_key(plan)
    original = federation.authority.open_round

    def asked_with(members, digest):
        def other(request):
            found = members(request.header.members)
            statement = parse_statement(request.header.statement)
            if digest:
                statement = statement.model_copy(update={"members": cohort_digest(found)})
            update = {"members": found, "statement": statement.model_dump_json()}
            return original(OpenRound(request.header.model_copy(update=update), request.plan))

        return other

    def larger(members):
        return (members[0].model_copy(update={"units": 9}), *members[1:])

    for members, digest, words in (
        (lambda members: members[:2], True, "the entries are not those of the cohort"),
        (larger, False, "the cohort's digest is of other entries"),
        (larger, True, "the signature of 'site-0' does not fit what arrived"),
    ):
        federation.authority.open_round = asked_with(members, digest)
        with pytest.raises(PeerError):
            federation.round()
        assert f"not opened: PeerError: {words}" in said[-1]
    assert plans == []


def test_a_coordinator_goes_on_with_the_round_that_it_asked_for_alone(deployed):
    federation, _ = deployed
    original = federation.authority.open_round

    def other(request):
        statement = parse_statement(request.header.statement)
        text = statement.model_copy(update={"attempt": 9}).model_dump_json()
        header = request.header.model_copy(update={"statement": text})
        return original(OpenRound(header, request.plan))

    federation.authority.open_round = other
    with pytest.raises(PeerError, match="signed another round than was asked for"):
        federation.round()
    assert "train" not in {kind for kind, _ in federation.heard}


def test_a_sum_of_fewer_sites_than_were_promised_is_not_opened(deployed):
    federation, _ = deployed
    original = federation.authority.open_sum

    def fewer(request):
        header = request.header.model_copy(update={"survivors": ("site-0",)})
        return original(replace(request, header=header))

    federation.authority.open_sum = fewer
    with pytest.raises(RefusedError) as caught:
        federation.round()
    assert caught.value.message.endswith("the sum holds 1 sites; at least 2 are needed")
    assert caught.value.remedy == "repeat the round with more sites"


def test_reveals_of_masks_that_a_round_has_not_are_refused(tiny_checkpoint, tmp_path):
    config = small_config(tiny_checkpoint("bert"), encryption={"masks": False})
    federation = build(tmp_path, config)
    original = federation.authority.open_sum

    def more(request):
        header = request.header.model_copy(update={"reveals": ("00",) * 3})
        return original(replace(request, header=header))

    federation.authority.open_sum = more
    with pytest.raises(PeerError, match="a round without masks came with reveals of masks"):
        federation.round()
