"""Labels are those of training's own passes over the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tasks import encode, record

from fedllm.tasks import task_of
from fedllm.tasks.predicting import SpanPredicting

TEXTS = [
    "my card is lost",
    "cash",
    "open close bank loan rate fee pay send lost " * 3,
    "fee my rate",
]
LENGTH = 16


@pytest.mark.parametrize(("kind", "rank"), [("bert", 2), ("bert", 0), ("llama", 2), ("roberta", 2)])
def test_labels_have_the_probabilities_of_training(kind, rank, tiny_model):
    model = tiny_model(kind, lora={"rank": rank, **({} if rank else {"last_layers": None})})
    found = list(task_of(model.task).predicting()(model, LENGTH).predict(TEXTS))
    rows = [record(text=text, label="one") for text in TEXTS]
    data = encode(rows, model.task, model.tokenizer, LENGTH, model.labels)
    for place, said in enumerate(found):
        with torch.no_grad():
            shares = model.module(data.batch(np.array([place])))[0].softmax(-1)
        wanted = dict(zip(model.labels, shares.tolist(), strict=True))
        assert dict(said.labels) == pytest.approx(wanted, abs=1e-5)
        assert [share for _, share in said.labels] == sorted(wanted.values(), reverse=True) or (
            dict(said.labels) == pytest.approx(wanted, abs=1e-5)
        )
    assert [said.cut > 0 for said in found] == [False, False, True, False]
    assert sum(said.cut for said in found) == data.cut_tokens
    assert len({said.labels for said in found}) > 1


def test_fields_hold_so_many_labels(tiny_model):
    model = tiny_model()
    (said,) = task_of(model.task).predicting()(model, LENGTH).predict(["card"])
    fields = said.fields(2)
    assert fields["label"] == fields["labels"][0]["label"] == said.labels[0][0]
    assert len(fields["labels"]) == 2
    assert len(said.fields(0)["labels"]) == 3
    assert sum(one["probability"] for one in said.fields(0)["labels"]) == pytest.approx(1)
    assert said.words(1).count(",") == 0


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_spans_are_those_of_the_tags(kind, tiny_model):
    model = tiny_model(kind, "token_classification")
    found = list(task_of(model.task).predicting()(model, LENGTH).predict(TEXTS))
    assert sum(len(said.spans) for said in found) > 3
    for text, said in zip(TEXTS, found, strict=True):
        row = record(text=text, spans="[]")
        data = encode([row], model.task, model.tokenizer, LENGTH, model.labels)
        with torch.no_grad():
            tags = model.module(data.batch(np.array([0])))[0].argmax(-1)
        words = text.split()[:LENGTH]
        labelled = {place for place, tag in enumerate(tags[: len(words)].tolist()) if tag}
        inside = {
            place
            for place, word in enumerate(words)
            for span in said.spans
            if span.start <= len(" ".join(words[:place])) + (place > 0) < span.end
        }
        assert inside == labelled
        for span in said.spans:
            assert span.text == text[span.start : span.end] == span.text.strip()
            assert span.label in model.labels
            assert 0 < span.probability <= 1


def test_white_space_at_the_edge_of_a_token_is_in_no_span(tiny_model):
    model = tiny_model("bert", "token_classification")
    shares = torch.zeros(2, 7)
    shares[0, 1], shares[1, 2] = 0.9, 0.6
    read = SpanPredicting(model, LENGTH)._read("a b c ", shares, [(1, 3), (3, 6)], [0, 0], 0)
    (span,) = read.spans
    assert (span.start, span.end, span.text, span.label) == (2, 5, "b c", "one")
    assert span.probability == pytest.approx(0.6)
    read = SpanPredicting(model, LENGTH)._read("a b c ", shares, [(1, 3), (3, 6)], [1, 0], 0)
    assert [span.text for span in read.spans] == ["c"]


def test_company_changes_nothing(tiny_model):
    model = tiny_model("bert", "token_classification")
    predicting = task_of(model.task).predicting()(model, LENGTH)
    together = list(predicting.predict(TEXTS * 3))
    for text, said in zip(TEXTS * 3, together, strict=True):
        (alone,) = predicting.predict([text])
        assert [s.text for s in alone.spans] == [s.text for s in said.spans]


def test_tasks_that_write_have_no_labels():
    for task in ("instruction", "causal"):
        assert task_of(task).predicting() is None
        assert task_of(task).prompting() is not None
    for task in ("classification", "token_classification"):
        assert task_of(task).prompting() is None
