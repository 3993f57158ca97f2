"""The public records that a run is measured on, the same ones in every version."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from support.federation import LABELS, records, small_config, write_jsonl
from support.tasks import encode, record
from support.tokenizers import make_tokenizer

from fedllm.errors import DataError
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import evaluate
from fedllm_server.finishing import quality_of
from fedllm_server.public_part import cut_off_of_test, public_digest, public_part, public_records


def test_which_test_records_are_taken_follows_from_the_seed_alone(tiny_checkpoint, tmp_path):
    test = write_jsonl(tmp_path / "test.jsonl", records(9, seed=3))
    config = small_config(
        tiny_checkpoint("bert"), data={"test": str(test), "test_limit": 3}, seed=11
    )
    found = public_records(config)
    some = public_part(config, found).test
    chosen = [found[i] for i in (0, 6, 8)]
    expected = public_part(small_config(tiny_checkpoint("bert"), data={"test": None}), chosen).test
    assert [row.tolist() for row in some.tokens] == [row.tolist() for row in expected.tokens]


def test_what_the_files_hold_is_known_whatever_they_are_called(tiny_checkpoint, tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", records(2, seed=1))
    config = small_config(tiny_checkpoint("bert"), data={"test": str(one)})
    assert (
        public_digest(config)
        == hashlib.sha256(hashlib.sha256(one.read_bytes()).digest()).hexdigest()
    )
    assert public_digest(small_config(tiny_checkpoint("bert"), data={"test": None})) == ""


def test_what_is_cut_off_the_test_file_is_said_by_its_key():
    tokenizer = make_tokenizer()
    assert cut_off_of_test(None) == ""
    rows = [record(text="fever " * 50), record(text="flu")]
    assert cut_off_of_test(encode(rows, "causal", tokenizer, 100)) == ""
    words = cut_off_of_test(encode(rows, "causal", tokenizer, 20))
    assert words.startswith("data.test: 1 of 2 records are longer than model.max_length = 20")


def test_which_label_and_group_each_test_record_is_of(tiny_checkpoint, tmp_path):
    rows = [
        {"text": f"card {place}", "label": LABELS[place % 3], "language": "ab"[place % 2]}
        for place in range(12)
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"test": str(path), "labels": None, "group": "language", "test_limit": 7}
    config = small_config(tiny_checkpoint("bert"), data=data)
    found = public_part(config, public_records(config))
    labels, groups = found.parts["label"], found.parts["group"]
    assert len(labels) == len(groups) == len(found.test) == 7
    order = RandomStream.seeded(config.seed, "test records").permutation(12)
    places = sorted(order[:7])
    assert [LABELS[place % 3] for place in places] == list(labels)
    assert ["ab"[place % 2] for place in places] == list(groups)
    quality = quality_of(found, from_untrained=True)
    assert set(quality["group"]) == {"a", "b"}
    assert sum(part["after"]["records"] for part in quality["label"].values()) == 7
    whole = evaluate(found.model, found.test)
    for kind in ("label", "group"):
        mean = sum(p["after"]["loss"] * p["after"]["records"] for p in quality[kind].values()) / 7
        assert mean == pytest.approx(whole["loss"])
        assert all(part["before"] == part["after"] for part in quality[kind].values())
    drawn = np.random.default_rng(1).normal(size=found.model.manifest.length)
    moved = drawn.astype(np.float32)
    found.model.set_adapter(moved)
    later = quality_of(found, from_untrained=True)["group"]["a"]
    assert later["before"] == quality["group"]["a"]["after"] != later["after"]
    assert np.array_equal(found.model.adapter(), moved)
    assert "before" not in quality_of(found, from_untrained=False)["group"]["a"]


def test_a_group_that_no_column_names_is_told(tiny_checkpoint, tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", records(6))
    config = small_config(tiny_checkpoint("bert"), data={"test": str(path), "group": "language"})
    with pytest.raises(DataError, match="no column 'language'"):
        public_records(config)
