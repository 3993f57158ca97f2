"""Whole runs on texts with spans that differ in one unit: nothing else that leaves a site does."""

from __future__ import annotations

import pytest
from support.federation import LABELS, small_config
from support.listening import LOCAL, MECHANISMS, Coordinator, injected, start, strict_join

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.data.records import Record
from fedllm.data.spans import Span, written
from fedllm.federation.site.data import SiteData

__all__ = ["injected"]


def visit(text: str, *spans: Span) -> Record:
    return Record({"text": text, "spans": written(list(spans))}, None, None, "target:1")


def beside_others(*targets: Record) -> list[Record]:
    others = [visit("card cash", Span(0, 4, LABELS[i % 2])) for i in range(12)]
    return [*targets, *others[len(targets) :]]


# What a site refuses to start with, but may come to hold in another way.
TARGETS = {
    "another label": visit("card pay", Span(5, 8, "three")),
    "a foreign label": visit("card pay", Span(5, 8, "never public")),
    "no spans": visit("card pay"),
    "no words": visit("\u200b"),
    "outside of the text": visit("card", Span(2, 99, "one")),
    "the wrong way round": visit("card", Span(3, 1, "one")),
    "over each other": visit("card pay", Span(0, 6, "one"), Span(2, 8, "two")),
    "no JSON": Record({"text": "card", "spans": "[{"}, None, None, "target:1"),
    "no list": Record({"text": "card", "spans": "7"}, None, None, "target:1"),
    "half a span": Record({"text": "card", "spans": '[{"start": 1}]'}, None, None, "target:1"),
}
# One that training and evaluation see, and one that no library reads.
QUICK, SLOW = {"another label", "no JSON"}, pytest.mark.slow


@pytest.fixture
def transcript(tiny_checkpoint, tmp_path_factory, injected):
    def run(own, mechanisms=("local", "shared", "evaluated")):
        injected()
        data = {"site-0": own, "site-1": [visit("fee", Span(0, 3, "two")) for _ in range(12)]}
        policy = SitePolicy(
            budget=BudgetSection(epsilon=1e6), allow=AllowSection(encryption="optional")
        )
        config = small_config(tiny_checkpoint("bert"), task="token_classification")
        coordinator = Coordinator(tmp_path_factory.mktemp("run"), config, data, policy)
        for name in mechanisms:
            coordinator.run(name, MECHANISMS[name])
        coordinator.run("without-three", LOCAL, labels=("one", "two"))
        coordinator.run("short", {**LOCAL, "model": {"max_length": 1}})
        return coordinator.seen

    return run


@pytest.mark.slow
def test_nothing_that_leaves_a_site_depends_on_one_units_spans(transcript):
    plain = transcript(beside_others())
    assert sum('"train"' in line for line in plain) >= 6
    assert not any("token_classification" in line for line in plain), "no run was refused"
    assert transcript(beside_others(*TARGETS.values())) == plain


@pytest.mark.parametrize("names", [QUICK, pytest.param(TARGETS.keys() - QUICK, marks=SLOW)])
def test_nothing_that_leaves_a_site_depends_on_the_spans_of_one_text_alone(transcript, names):
    plain = transcript(beside_others(), ["evaluated"])
    for name in sorted(names):
        assert transcript(beside_others(TARGETS[name]), ["evaluated"]) == plain, name


@SLOW
@pytest.mark.parametrize("name", ["a foreign label", "no JSON"])
def test_a_site_that_encoded_before_it_answered_would_be_found(transcript, monkeypatch, name):
    before = Coordinator.run

    def run(self, which, sections, adapter=start, labels=LABELS):
        model = self.federation.models.get(self.federation.config, labels)
        strict_join.tokenizer, strict_join.labels = model.tokenizer, labels
        before(self, which, sections, adapter, labels)

    monkeypatch.setattr(Coordinator, "run", run)
    monkeypatch.setattr(SiteData, "units", strict_join)
    assert transcript(beside_others(TARGETS[name])) != transcript(beside_others())
