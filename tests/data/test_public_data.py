"""The public data sets that the examples use."""

from __future__ import annotations

import numpy as np
import pytest
from support.tasks import encode, read_records

from fedllm.config import DataSection
from fedllm.data.partition import split_into_sites
from fedllm.tasks.classification import Classification

pytestmark = pytest.mark.data


def test_banking77(public_data, plain):
    folder = public_data / "banking77"
    data = DataSection(
        train=str(folder / "train.jsonl.gz"),
        test=str(folder / "test.jsonl.gz"),
        label="label_name",
        partition="dirichlet",
    )
    train = read_records(data.train, data, "classification")
    test = read_records(data.test, data, "classification")
    assert (len(train), len(test)) == (9947, 2614)
    labels = Classification().labels(data, test)
    assert len(labels) == 77
    assert {r.values["label"] for r in train} == set(labels)
    by_number = data.model_copy(update={"label": "label"})
    numbers = Classification().labels(
        by_number, read_records(data.test, by_number, "classification")
    )
    assert numbers == tuple(str(i) for i in range(77))
    split = split_into_sites(train, data, 1)
    assert sum(map(len, split.values())) == 9947
    dataset = encode(split["site-00"], "classification", plain, 64, labels)
    assert dataset.batch(np.arange(50))["labels"].max() < 77


def test_medquad(public_data, turns):
    data = DataSection(
        train=str(public_data / "medquad" / "t*t.jsonl.gz"),
        prompt="question",
        response="answer",
        site="source",
    )
    records = read_records(data.train, data, "instruction")
    split = split_into_sites(records, data, 0)
    sizes = {name: len(part) for name, part in split.items()}
    assert len(sizes) == 9
    assert sizes["MPlus_Health_Topics"] == 127
    assert sum(sizes.values()) == 1560
    dataset = encode(split["CDC"], "instruction", turns, 128)
    batch = dataset.batch(np.arange(18))
    assert bool((batch["labels"] != -100).any(1).all())
    assert batch["input_ids"].shape == (18, 128)
