"""The public records that a run is measured on, the same ones in every version."""

from __future__ import annotations

import hashlib

from support.federation import records, small_config, write_jsonl
from support.tasks import encode, record
from support.tokenizers import make_tokenizer

from fedllm_server.public_part import cut_off_of_test, public_digest, public_part, public_records


def test_which_test_records_are_taken_follows_from_the_seed_alone(tiny_checkpoint, tmp_path):
    test = write_jsonl(tmp_path / "test.jsonl", records(9, seed=3))
    config = small_config(
        tiny_checkpoint("bert"), data={"test": str(test), "test_limit": 3}, seed=11
    )
    found = public_records(config)
    _, some = public_part(config, found)
    chosen = [found[i] for i in (0, 6, 8)]
    _, expected = public_part(small_config(tiny_checkpoint("bert"), data={"test": None}), chosen)
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
