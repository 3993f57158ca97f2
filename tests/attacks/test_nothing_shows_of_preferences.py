"""Whole runs on rankings that differ in one event: nothing else that leaves a site does."""

from __future__ import annotations

import pytest
from support.federation import small_config
from support.listening import EVALUATED, MECHANISMS, Coordinator, injected, start, strict_join

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.data.rankings import Ranking
from fedllm.data.records import Record
from fedllm.federation.site.data import SiteData
from fedllm.tasks import preference_encoding

__all__ = ["injected"]

ALIKE = "card " * 40


def event(answers=("pay", "send cash"), pairs=((0, 1),), prompt="card", **values) -> Record:
    written = Ranking(prompt, "", tuple(answers), tuple(pairs)).written()
    return Record({**written, **values}, None, None, "target:1")


def beside_others(*targets: Record) -> list[Record]:
    others = [event(pairs=(((0, 1), (1, 0))[i % 2],)) for i in range(12)]
    return [*targets, *others[len(targets) :]]


# What a site refuses to start with, but may come to hold in another way.
TARGETS = {
    "the other way round": event(pairs=[(1, 0)]),
    "eight answers": event([f"card {'pay ' * n}" for n in range(8)], [(0, 7), (3, 2), (2, 3)]),
    "equal answers": event(["pay", "pay"]),
    "an empty answer": event(["pay", ""]),
    "no words": event(["\u200b", "pay"], prompt="\u200b"),
    "alike in what is read": event([f"{ALIKE}pay", f"{ALIKE}send"]),
    "a long prompt": event(prompt="card " * 500),
    "all tied": event(pairs=[]),
    "no JSON": event(answers="[{"),
    "no list": event(answers="7"),
    "answers that are no texts": event(answers="[1, null]"),
    "no answers": event(answers="[]", pairs="[]"),
    "ranks that are no numbers": event(pairs='[["best", "worst"]]'),
    "ranks of other answers": event(pairs="[[0, 7]]"),
    "ranks of answers before the first": event(pairs="[[0, -3]]"),
    "half a pair": event(pairs="[[0]]"),
}
SLOW = pytest.mark.slow
OBJECTIVES = {"reward": "bert", "dpo": "llama", "selector": "llama"}


@pytest.fixture(autouse=True)
def words_that_the_tiny_tokenizer_knows(monkeypatch):
    """Ask a selector in words which it can tell apart: else nothing reaches its adapter."""
    monkeypatch.setattr(preference_encoding, "WORDS", ("open", "close"))
    for name, word in (("_FIRST", "pay"), ("_OTHER", "cash"), ("_QUESTION", "lost")):
        monkeypatch.setattr(preference_encoding, name, f"\n\n{word} ")


@pytest.fixture
def transcript(tiny_checkpoint, tmp_path_factory, injected):
    def run(own, mechanisms=("local", "shared", "site", "evaluated"), objective="reward"):
        injected()
        data = {"site-0": own, "site-1": [event(["fee", "loan"]) for _ in range(12)]}
        policy = SitePolicy(
            budget=BudgetSection(epsilon=1e6), allow=AllowSection(encryption="optional")
        )
        learned = {
            "preference": {"objective": objective},
            "data": {"labels": None},
            # A selector reads a prompt and two answers at once, and what stands around them.
            **({"model": {"max_length": 48}} if objective == "selector" else {}),
        }
        checkpoint = tiny_checkpoint(OBJECTIVES[objective])
        config = small_config(checkpoint, task="preference", **learned)
        coordinator = Coordinator(tmp_path_factory.mktemp("run"), config, data, policy)
        for name in mechanisms:
            coordinator.run(name, {**MECHANISMS[name], **learned}, labels=())
        if len(mechanisms) > 1:
            held = {**EVALUATED, "evaluation": {"every": 1, "holdout": 0.999}}
            coordinator.run("nothing-held", {**held, **learned}, labels=())
            short = {**EVALUATED, "model": {"max_length": 2}}
            coordinator.run("short", {**learned, **short}, labels=())
        return coordinator.seen

    return run


def test_nothing_that_leaves_a_site_depends_on_rankings(transcript):
    """All of them at once."""
    plain = transcript(beside_others(), ["evaluated"])
    assert any('"train"' in line for line in plain)
    assert transcript(beside_others(*TARGETS.values())[:12], ["evaluated"]) == plain


@SLOW
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_does_whatever_is_asked(transcript, objective):
    plain = transcript(beside_others(), objective=objective)
    assert any('"train"' in line for line in plain)
    assert sum('"train"' in line for line in plain) >= 5
    assert not any("preference" in line for line in plain), "no run was refused"
    assert transcript(beside_others(*TARGETS.values())[:12], objective=objective) == plain


@SLOW
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_that_leaves_a_site_depends_on_one_event_alone(transcript, objective):
    plain = transcript(beside_others(), ["evaluated"], objective)
    assert any('"train"' in line for line in plain)
    for name in sorted(TARGETS):
        assert transcript(beside_others(TARGETS[name]), ["evaluated"], objective) == plain, name


@SLOW
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_site_of_one_event_shows_nothing_of_it(transcript, objective):
    plain = transcript([event()], ["local", "evaluated"], objective)
    assert any('"train"' in line for line in plain)
    for name in ("all tied", "no JSON", "equal answers", "eight answers"):
        assert transcript([TARGETS[name]], ["local", "evaluated"], objective) == plain, name


@SLOW
@pytest.mark.parametrize("name", ["equal answers", "no JSON"])
def test_a_site_that_encoded_before_it_answered_would_be_found(transcript, monkeypatch, name):
    before = Coordinator.run

    def run(self, which, sections, adapter=start, labels=()):
        model = self.federation.models.get(self.federation.config, labels)
        strict_join.tokenizer, strict_join.labels = model.tokenizer, labels
        before(self, which, sections, adapter, labels)

    monkeypatch.setattr(Coordinator, "run", run)
    monkeypatch.setattr(SiteData, "units", strict_join)
    assert transcript(beside_others(TARGETS[name]), ["local"]) != transcript(
        beside_others(), ["local"]
    )
