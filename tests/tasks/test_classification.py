from __future__ import annotations

import numpy as np
import pytest
import torch
from support.tasks import encode, everything, record, sequence

from fedllm.config import DataSection
from fedllm.errors import DataError
from fedllm.tasks.classification import Classification


def test_classification_has_special_tokens_and_label_numbers(turns):
    records = [record(text="my card", label="b"), record(text="a fever " * 50, label="a")]
    dataset = encode(records, "classification", turns, 20, ("a", "b"))
    batch = everything(dataset)
    assert batch["labels"].tolist() == [1, 0]
    assert batch["labels"].dtype == torch.int64
    assert turns.decode(sequence(batch, 0)) == "<s>my card"
    assert len(sequence(batch, 1)) == 20
    assert batch["input_ids"].shape == (2, 20)


def test_labels_outside_the_public_set_are_refused_without_quoting_them(turns):
    records = [record(f"a.csv:{i}", text="x", label="Private" if i % 2 else "a") for i in range(20)]
    with pytest.raises(DataError) as caught:
        encode(records, "classification", turns, 20, ("a", "b"))
    message = str(caught.value)
    assert "10 rows cannot be used" in message
    assert "a.csv:1: its label is not one of the 2 public labels ('a', 'b')" in message
    assert "and 5 more" in message
    assert "Private" not in message


def test_label_set_comes_from_the_configuration_or_the_public_test_records():
    def tests(*labels: str):
        return [record(text="x", label=label) for label in labels]

    open_set = DataSection(train="x")
    assert Classification().labels(open_set, tests("b", "a", "b")) == ("a", "b")
    assert Classification().labels(open_set, tests("10", "9", "-1", "9")) == ("-1", "9", "10")
    assert Classification().labels(open_set, tests("10", "9", "x")) == ("10", "9", "x")
    given_set = DataSection(train="x", labels=("z", "a"))
    assert Classification().labels(given_set, tests("q")) == ("z", "a")
    with pytest.raises(DataError, match=r"list them in data\.labels"):
        Classification().labels(open_set, [])
    with pytest.raises(DataError, match="names a label twice"):
        Classification().labels(DataSection(train="x", labels=("a", "a")), [])


def test_confidence_of_a_classifier_is_the_logit_of_the_right_label():
    probability = np.array([0.1, 0.5, 0.999])
    found = Classification().confidence(-np.log(probability))
    np.testing.assert_allclose(found, np.log(probability / (1 - probability)), rtol=1e-6)
    assert np.isfinite(Classification().confidence(np.array([0.0, 400.0]))).all()


def test_a_foreign_label_is_told_by_row_column_and_the_nearest_public_one(turns, tmp_path):
    path = tmp_path / "rec_a.csv"
    path.write_text("text,category\nx,one\n\n\nx,Tow\nx,seventeen\n")
    data = DataSection(train=str(path), label="category")
    records = Classification().read(str(path), data)
    with pytest.raises(DataError) as caught:
        encode(records, "classification", turns, 20, ("one", "two"))
    lines = caught.value.message.splitlines()[1:]
    said = "field 'category' is not one of the 2 public labels ('one', 'two')"
    assert lines == [
        f"  rec_a.csv row 2 (line 5): {said}; the nearest is 'two'",
        f"  rec_a.csv row 3 (line 6): {said}",
    ]


def test_of_many_public_labels_twenty_are_shown(turns):
    labels = tuple(f"label-{number}" for number in range(77))
    with pytest.raises(DataError) as caught:
        encode([record(text="x", label="y")], "classification", turns, 20, labels)
    assert "'label-19' and 57 more)" in caught.value.message
    assert "label-20" not in caught.value.message
