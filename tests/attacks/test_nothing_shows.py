"""Whole runs on data sets that differ in one unit, under a coordinator that varies what it may.

All generators are injected, so whatever differs in what leaves a site was computed from the one
unit. Not compared is what the mechanism protects: the noised vector, of which only the length is,
and the hash of the ledger, which hangs on keyed tags.
"""

from __future__ import annotations

import numpy as np
import pytest
from support import listening
from support.federation import LABELS, small_config
from support.listening import LOCAL, MECHANISMS, injected, start, strict_join

from fedllm.config import AllowSection, BudgetSection, SitePolicy
from fedllm.data.records import Record
from fedllm.federation.protocol.refusals import Refusal
from fedllm.federation.site.data import SiteData
from fedllm.training.observed import StepRecord

__all__ = ["injected"]


def aimed(model) -> np.ndarray:
    """An adapter at which label "three" alone gives the layers below the head a gradient.

    The model is sure of "one", and for the head "one" and "two" are the same direction.
    """
    vector = model.initial.copy()
    parts = {segment.name: segment for segment in model.manifest.segments}
    weight = np.zeros((len(model.labels), parts["head.weight"].size // len(model.labels)))
    weight[:2] = 0.1
    vector[parts["head.weight"].slice] = weight.reshape(-1)
    vector[parts["head.bias"].slice.start] = 900.0
    return vector


def huge(model) -> np.ndarray:
    return np.full_like(model.initial, 999.0)


def text(words: str, label: str = "one") -> Record:
    return Record({"text": words, "label": label}, None, None, "target:1")


def beside_others(*targets: Record) -> list[Record]:
    """Return a file of twelve, all others of two labels."""
    others = [text(f"card {i}", LABELS[i % 2]) for i in range(12)]
    return [*targets, *others[len(targets) :]]


TARGETS = {
    "another label": text("card pay", "three"),
    "a foreign label": text("card pay", "never public"),
    "no words": text("\u200b"),
    "a long text": text("card " * 500),
    "a text that breaks the tokenizer": text("!break!"),
    "a text that breaks the model": text("!crash!", "three"),
}
QUICK, SLOW = {"another label", "a text that breaks the model"}, pytest.mark.slow


class Panic(BaseException):
    """As a library that is written in Rust raises it."""


@pytest.fixture(autouse=True)
def fragile(monkeypatch, tiny_checkpoint):
    """Let two texts break a library, as a fault of its own would."""
    from fedllm.tasks.classification import Classification, LabelledTexts

    tokenise, losses = LabelledTexts.sequences, Classification.losses

    def sequences(self, rows):
        if any("!break!" in row.values["text"] for row in rows):
            raise Panic("the words of a record")
        # The mark of a text that breaks the model is a token of its own.
        marks = ["!crash!" in row.values["text"] for row in rows]
        for mark, sequence in zip(marks, tokenise(self, rows), strict=True):
            yield sequence._replace(ids=[*sequence.ids, 3]) if mark else sequence

    def crashing(self, model, batch):
        if bool((batch["input_ids"] == 3).any()) and crashing.armed:
            raise IndexError("the words of a record")
        return losses(self, model, batch)

    crashing.armed = True
    monkeypatch.setattr(LabelledTexts, "sequences", sequences)
    monkeypatch.setattr(Classification, "losses", crashing)


class Coordinator(listening.Coordinator):
    """The same coordinator, on texts with one label."""

    def __init__(self, folder, checkpoint, own, budget=1e6):
        data = {"site-0": own, "site-1": [text(f"fee {i}", "two") for i in range(12)]}
        policy = SitePolicy(
            budget=BudgetSection(epsilon=budget), allow=AllowSection(encryption="optional")
        )
        super().__init__(folder, small_config(checkpoint), data, policy)

    def everything(self) -> list[str]:
        for name, sections in MECHANISMS.items():
            for adapter in (start, aimed, huge):
                self.run(f"{name}-{adapter.__name__}", sections, adapter)
        for left_out in LABELS:
            labels = tuple(label for label in LABELS if label != left_out)
            self.run(f"without-{left_out}", LOCAL, labels=labels)
        self.run("persons", {**LOCAL, "data": {"unit": "patient"}})
        self.run("short", {**LOCAL, "model": {"max_length": 1}})
        self.run("nothing-held", {**LOCAL, "evaluation": {"every": 1, "holdout": 0.999}})
        return self.seen


@pytest.fixture
def transcript(tiny_checkpoint, tmp_path_factory, injected):
    def run(own, budget=1e6, moves=Coordinator.everything):
        injected()
        coordinator = Coordinator(
            tmp_path_factory.mktemp("run"), tiny_checkpoint("bert"), own, budget
        )
        moves(coordinator)
        return coordinator.seen

    return run


@pytest.mark.slow
def test_nothing_that_leaves_a_site_depends_on_what_units_hold(transcript):
    """All at once, under everything that the coordinator can vary."""
    plain = transcript(beside_others())
    assert sum('"train"' in line for line in plain) >= 20
    assert transcript(beside_others(*TARGETS.values())) == plain


@pytest.mark.parametrize("names", [QUICK, pytest.param(TARGETS.keys() - QUICK, marks=SLOW)])
def test_nothing_that_leaves_a_site_depends_on_one_unit(transcript, names):
    plain = transcript(beside_others(), moves=few)
    for name in sorted(names):
        assert transcript(beside_others(TARGETS[name]), moves=few) == plain, name


def few(coordinator):
    for name in ("shared", "discrete"):
        coordinator.run(name, MECHANISMS[name], aimed)
    # In the one step that is not moved by noise yet.
    coordinator.run("local", {**LOCAL, "training": {"batch_size": 12, "local_steps": 1}}, aimed)
    coordinator.run("without-three", LOCAL, labels=("one", "two"))


def refusing(self, update):
    self.check(update)
    return update


@pytest.mark.parametrize("plant", ["joins encode", "refused after training", "refused when sent"])
def test_the_mends_are_what_keeps_it_so(transcript, monkeypatch, plant):
    """Each old behaviour, put back, is found."""
    target = TARGETS["another label"]
    if plant == "refused after training":
        monkeypatch.setattr(StepRecord, "check_private", refusing)
    elif plant == "refused when sent":
        monkeypatch.setattr(StepRecord, "look_connected", StepRecord.check_connected)
    else:
        before = Coordinator.run

        def run(self, name, sections, adapter=start, labels=LABELS):
            model = self.federation.models.get(self.federation.config, labels)
            strict_join.tokenizer, strict_join.labels = model.tokenizer, labels
            before(self, name, sections, adapter, labels)

        monkeypatch.setattr(Coordinator, "run", run)
        monkeypatch.setattr(SiteData, "units", strict_join)
    plain = transcript(beside_others(), moves=few)
    assert transcript(beside_others(target), moves=few) != plain


def stingy(coordinator):
    """Spend a part of the ceiling, then ask for more than it leaves."""
    for epsilon in (0.5, 4.0):
        coordinator.run(f"at-{epsilon}", {"privacy": {"epsilon": epsilon}})


def test_no_refusal_and_no_announcement_tells_a_sites_size(transcript):
    seen = {
        size: transcript(beside_others() + [text("rate")] * size, budget=1.0, moves=stingy)
        for size in (28, 34)
    }
    assert "BudgetError" in seen[28][-1]
    assert seen[28] == seen[34]


@pytest.mark.parametrize("plant", ["exact", "whole words"])
def test_a_size_that_shows_is_found(transcript, monkeypatch, plant):
    for place in ("fedllm.mechanisms.local", "fedllm.federation.site.data"):
        monkeypatch.setattr(f"{place}.rounded_size", lambda units: units)
    if plant == "whole words":
        whole = classmethod(lambda cls, error, full_text: cls.whole(error))
        monkeypatch.setattr(Refusal, "of_site", whole)
    first, second = (
        transcript(beside_others() + [text("rate")] * size, budget=1.0, moves=stingy)
        for size in (28, 34)
    )
    assert first != second
    # What is announced shows at once; what a ledger holds, in the words of a refusal.
    shown = first[0] if plant == "exact" else first[-1]
    assert (shown in second) is False
