"""Sites that answer nothing, twice, or unasked: the round is lost as by any other peer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.federation import build, small_config

from fedllm.errors import PeerError, RefusedError
from fedllm.federation.coordinator import answers
from fedllm.federation.coordinator.answers import (
    all_answers,
    called,
    dropped_out,
    good_answers,
    joined_member,
    too_few,
    who_and_why,
)
from fedllm.federation.protocol.messages import Joined, JoinedHeader, Settled, SettledHeader
from fedllm.federation.protocol.refusals import Refusal
from fedllm.identity.roster import Roster

NAMES = ("anne", "bob")


def settled(name: str) -> tuple[str, Settled]:
    return name, Settled(SettledHeader(site=name, signature="00"), b"")


def test_one_answer_of_each_is_what_is_wanted():
    assert set(all_answers(iter([settled("bob"), settled("anne")]), NAMES)) == set(NAMES)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "'anne' did not answer"),
        (["anne"], "'bob' did not answer"),
        (["anne", "bob", "anne"], "'anne' answered twice"),
        (["anne", "carol", "bob"], "'carol' answered and was not asked"),
    ],
)
def test_who_is_silent_twice_heard_or_unasked_is_named(names, words):
    with pytest.raises(PeerError) as caught:
        all_answers(map(settled, names), NAMES)
    assert caught.value.message == words


class Odd:
    """A federation in which one exchange gives other answers than one of each site."""

    def __init__(self, federation, kind: str, change) -> None:
        self._federation, self._kind, self._change = federation, kind, change

    def __getattr__(self, name):
        original = getattr(self._federation, name)
        if name != self._kind:
            return original
        return lambda request, names: iter(self._change(list(original(request, names))))


def lost_first(answers):
    return answers[1:]


def first_twice(answers):
    return [answers[0], *answers]


def one_more(answers):
    _, answer = answers[0]
    return [*answers, ("site-9", answer)]


@pytest.fixture
def odd_round(tiny_checkpoint, tmp_path):
    from fedllm.federation.coordinator.cohort import gather_cohort
    from fedllm.federation.coordinator.rounds import run_round, statement_of

    def carry(kind: str, change, **encryption):
        config = small_config(tiny_checkpoint("bert"), encryption=encryption)
        federation = build(tmp_path, config)
        terms, roster = federation.terms, federation.roster
        cohort = gather_cohort(federation, terms, 1, roster, lambda text: None)
        sites = Odd(federation, kind, change)
        statement = statement_of(terms, cohort, 1, 1, None)
        adapter = federation.model().adapter()
        about = (terms, roster, statement, cohort, adapter)
        return run_round(sites, federation.authority, *about, lambda *_: None)

    return carry


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("settle", lost_first, "'site-0' did not answer"),
        ("settle", first_twice, "'site-0' answered twice"),
        ("settle", one_more, "'site-9' answered and was not asked"),
        ("unmask", first_twice, "'site-0' answered twice"),
        ("unmask", one_more, "'site-9' answered and was not asked"),
    ],
)
def test_a_round_is_lost_to_a_peer_in_each_later_exchange(odd_round, kind, change, words):
    with pytest.raises(PeerError) as caught:
        odd_round(kind, change)
    assert caught.value.message == words


def test_a_survivor_that_goes_away_before_it_reveals_is_still_in_the_sum(odd_round):
    outcome = odd_round("unmask", lost_first)
    assert outcome.survivors == ("site-0", "site-1", "site-2")
    assert outcome.recovered == {"site-0": "'site-0' did not answer"}


@pytest.mark.parametrize(
    ("change", "words"),
    [(first_twice, "'site-0' answered twice"), (one_more, "'site-9' answered and was not asked")],
)
def test_an_update_is_not_added_twice_or_unasked(odd_round, change, words):
    with pytest.raises(PeerError) as caught:
        odd_round("train", change)
    assert caught.value.message == words


def test_a_site_that_never_answers_has_dropped_out(odd_round):
    outcome = odd_round("train", lost_first)
    assert outcome.survivors == ("site-1", "site-2")
    assert outcome.dropped == {"site-0": "'site-0' did not answer"}


def test_without_recovery_nobody_is_asked_whether_it_is_still_there(odd_round):
    def unasked(answers):
        raise AssertionError(answers)

    outcome = odd_round("ready", unasked, recover_dropouts=False)
    assert (outcome.survivors, outcome.recovered) == (("site-0", "site-1", "site-2"), {})


@pytest.mark.parametrize(
    ("encryption", "kept"),
    [({}, 3), ({"recover_dropouts": False}, 0), ({"masks": False}, 0), ({"scheme": "none"}, 0)],
    ids=["recovering", "not recovering", "without masks", "in clear"],
)
def test_updates_are_kept_only_under_masks_and_to_be_taken_out_again(
    odd_round, monkeypatch, encryption, kept
):
    seen = []
    monkeypatch.setattr(answers._KeptUpdates, "add", lambda self, name, update: seen.append(name))
    odd_round("train", list, **encryption)
    assert len(seen) == kept


def test_without_recovery_a_silent_site_loses_the_attempt(odd_round):
    with pytest.raises(PeerError, match="dropped out of a round whose masks need all of them"):
        odd_round("train", lost_first, recover_dropouts=False)


def test_a_site_that_is_no_longer_there_is_a_peers_fault():
    from fedllm.federation.protocol.cohorts import Neighbourhood
    from fedllm.federation.protocol.messages import Settle, SettleHeader
    from fedllm_server.app import GridSites

    around = Neighbourhood(place=0, near=())
    header = SettleHeader(statement="", signature="", survivors=NAMES, around=around)
    with pytest.raises(PeerError, match="'anne' is not connected any more"):
        list(GridSites(None, {}, 1.0).settle(lambda name: Settle(header, b""), NAMES))


@pytest.mark.parametrize(
    ("node", "says", "name"),
    [
        ("node 7", "bob", "bob"),
        ("node 7", "mallory", "node 7"),
        ("node 7", "", "node 7"),
        ("anne", "bob", "anne"),
    ],
)
def test_a_site_is_called_by_its_key_and_only_else_by_what_it_says(node, says, name):
    roster = Roster(b"", {"anne": b"", "bob": b""})
    assert called(Joined(JoinedHeader(site=says)), node, roster) == name
    assert called(PeerError("no answer"), node, roster) == node


def test_the_bytes_that_came_up_and_went_down_are_those_of_the_messages(odd_round):
    came = []

    def heard(answers):
        came.extend(len(answer.update) for _, answer in answers)
        return answers

    outcome = odd_round("train", heard)
    assert len(came) == 3
    assert min(came) > 0
    assert outcome.bytes_up == sum(came)
    assert outcome.bytes_down > 3 * max(came), "with each order a key, larger than an update"
    assert outcome.bytes_down % 3 == 0
    assert set(outcome.heads) == set(outcome.survivors) == {"site-0", "site-1", "site-2"}
    assert set(outcome.seconds) == {"aggregate", "decrypt"}
    assert all(0 < seconds < 600 for seconds in outcome.seconds.values())


def test_an_update_that_is_refused_came_up_all_the_same(odd_round):
    def cut(answers):
        name, answer = answers[0]
        return [(name, replace(answer, update=answer.update[:-1])), *answers[1:]]

    outcome = odd_round("train", cut)
    assert list(outcome.dropped) == ["site-0"]
    assert outcome.bytes_up % 3 == 2


def test_a_round_lost_to_a_refusal_ends_in_that_refusal():
    """Masks that stay on: what the site said, if it said something, counts."""
    refused = RefusedError("the site's own reason", "ask the site")
    assert dropped_out({"anne": refused, "bob": PeerError("silent")}) is refused
    told = dropped_out({"anne": PeerError("silent"), "bob": refused})
    assert told.message == (
        "2 sites dropped out of a round whose masks need all of them; anne: silent"
    )
    assert "recover_dropouts" in told.remedy


def test_too_few_sites_are_told_by_what_most_of_them_said():
    none = too_few(1, 3, [])
    assert type(none) is PeerError
    assert none.message == "1 sites take part; rounds.min_sites is 3"
    refused, silent = RefusedError("no", "ask"), PeerError("silent", "wait")
    most = too_few(1, 3, [silent, refused, RefusedError("never", "x")])
    assert type(most) is RefusedError
    assert most.message == "1 sites can go on, 3 are needed. no (and 2 more sites failed)"
    assert most.remedy == "ask"
    alone = too_few(2, 3, [silent])
    assert (alone.message, alone.remedy) == ("2 sites can go on, 3 are needed. silent", "wait")


def test_sites_with_one_reason_are_named_together_and_not_without_end():
    names = [f"site-{number:02}" for number in range(13)]
    roster = Roster(b"", dict.fromkeys(names, b""))

    def said(count: int):
        return who_and_why([(name, f"{name}: full") for name in names[:count]], roster)

    assert said(1) == [("site site-00", "full")]
    assert said(2) == [("2 sites (site-00, site-01)", "full")]
    assert said(12) == [(f"12 sites ({', '.join(names[:12])})", "full")]
    assert said(13) == [(f"13 sites ({', '.join(names[:12])} and 1 more)", "full")]


def test_who_says_neither_yes_nor_no_does_not_take_part():
    with pytest.raises(PeerError, match="node 7 answered neither yes nor no"):
        joined_member(Joined(JoinedHeader(site="anne")), "node 7")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 2}, "the key authority opened another sum"),
        ({"cut": 8}, "the opened sum does not have the right length"),
        ({"cut": 1}, "the opened sum does not have the right length"),
    ],
)
def test_an_opened_sum_is_of_all_survivors_and_all_values(tiny_checkpoint, tmp_path, change, words):
    federation = build(tmp_path, small_config(tiny_checkpoint("bert")))
    whole = federation.authority.open_sum

    def other(request):
        found = whole(request)
        header = found.header.model_copy(update={"count": change.get("count", found.header.count)})
        levels = found.levels[: len(found.levels) - change.get("cut", 0)]
        return replace(found, header=header, levels=levels)

    federation.authority.open_sum = other
    with pytest.raises(PeerError) as caught:
        federation.round()
    assert caught.value.message == words


def test_good_answers_are_parted_from_those_that_are_not():
    """One bad or missing answer costs nobody else its place."""
    good = Settled(SettledHeader(site="anne", signature="00"), b"")
    late = PeerError("late")
    refusal = Refusal(kind="RefusedError", message="no")
    refused = Settled(SettledHeader(site="carl", refusal=refusal), b"")
    other = Settled(SettledHeader(site="anne", signature="00"), b"")
    answers = [("anne", good), ("bob", late), ("carl", refused), ("dora", other)]
    found, failures = good_answers(iter(answers), ("anne", "bob", "carl", "dora", "emil"))
    assert found == {"anne": good}
    assert sorted(failures) == ["bob", "carl", "dora", "emil"]
    assert failures["bob"] is late
    assert type(failures["carl"]) is RefusedError
    assert failures["dora"].message == "'dora' answered as 'anne'"
    assert failures["emil"].message == "'emil' did not answer"
    for names, words in (((), "was not asked"), (("anne",), "answered twice")):
        with pytest.raises(PeerError, match=words):
            good_answers(iter([("anne", good)] * 2), names)
