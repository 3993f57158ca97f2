"""Shards: every document once, none that must not be there."""

import gzip
import itertools
import json

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from fedllm.errors import DataError
from fedllm.pretraining import shards
from fedllm.pretraining.config import PretrainConfig, TokenizerSection
from fedllm.pretraining.manifest import load_manifest, open_shards
from fedllm.pretraining.shards import tokenise
from fedllm.pretraining.tokenizer import train_tokenizer

TEXTS = [f"document number {i} says {i * i}" for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TokenizerSection(vocabulary=320), "llama")


def write(path, texts):
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return str(path)


def config(train, **data) -> PretrainConfig:
    return PretrainConfig.model_validate({"name": "x", "data": {"train": train, **data}})


def documents(folder, part, manifest, tokenizer) -> list[str]:
    found = []
    for shard in open_shards(folder, part, manifest.dtype):
        assert shard[0] == shard[-1] == manifest.boundary
        marks = np.flatnonzero(shard == manifest.boundary)
        found += [tokenizer.decode(shard[a + 1 : b]) for a, b in itertools.pairwise(marks)]
    return found


def test_duplicates_and_evaluation_documents_are_left_out(tmp_path, tokenizer):
    train = write(tmp_path / "a.jsonl", [*TEXTS[:40], " " + TEXTS[3] + "\n"])
    more = write(tmp_path / "b.jsonl", TEXTS[30:60])
    evaluation = write(tmp_path / "e.jsonl", TEXTS[:5])
    excluded = write(tmp_path / "x.jsonl", TEXTS[50:52])
    run = config([train, more], evaluation=evaluation, exclude=excluded)
    manifest = tokenise(run, tokenizer, tmp_path / "tokens")
    first, second = (
        documents(tmp_path / "tokens", p, manifest, tokenizer) for p in manifest.sources
    )
    assert first == TEXTS[5:40]
    assert second == TEXTS[40:50] + TEXTS[52:60]
    assert [p.excluded for p in manifest.sources] == [6, 2]
    assert [p.duplicates for p in manifest.sources] == [0, 10]
    held = documents(tmp_path / "tokens", manifest.evaluation[0], manifest, tokenizer)
    assert held == TEXTS[:5]
    assert manifest.evaluation[0].text_bytes == sum(len(t.encode()) for t in TEXTS[:5])


def test_evaluation_documents_beyond_the_limit_are_excluded_all_the_same(tmp_path, tokenizer):
    train = write(tmp_path / "a.jsonl", TEXTS)
    evaluation = write(tmp_path / "e.jsonl", TEXTS[:30])
    run = config(train, evaluation=evaluation)
    run = run.model_copy(update={"report": run.report.model_copy(update={"evaluation_tokens": 20})})
    manifest = tokenise(run, tokenizer, tmp_path / "tokens")
    assert manifest.evaluation[0].documents < 5
    assert manifest.sources[0].documents == 30


def test_held_out_documents_stay_held_out_when_the_corpus_grows(tmp_path, tokenizer):
    folder, held = tmp_path / "tokens", []
    for count in (40, 60):
        run = config(write(tmp_path / "a.jsonl", TEXTS[:count]), held_out=0.2)
        manifest = tokenise(run, tokenizer, folder)
        held.append(set(documents(folder, manifest.evaluation[0], manifest, tokenizer)))
        rest = documents(folder, manifest.sources[0], manifest, tokenizer)
        assert held[-1] | set(rest) == set(TEXTS[:count])
        assert not held[-1] & set(rest)
    assert held[0] == held[1] & set(TEXTS[:40])


def test_shards_are_written_once_and_again_when_the_text_changes(tmp_path, tokenizer, monkeypatch):
    path = tmp_path / "a.jsonl"
    run = config(write(path, TEXTS), held_out=0.1)
    first = tokenise(run, tokenizer, tmp_path / "tokens")
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_Writer", None)
        assert tokenise(run, tokenizer, tmp_path / "tokens") == first
    write(path, TEXTS[:50])
    second = tokenise(run, tokenizer, tmp_path / "tokens")
    assert second.fingerprint != first.fingerprint
    assert load_manifest(tmp_path / "tokens") == second


def test_a_tokenizer_that_cuts_and_pads_texts_does_neither_here(tmp_path):
    # As tokenizers of sentence encoders are often saved.
    texts = [f"{text}, {'and so on ' * 20}" for text in TEXTS]
    cutting = train_tokenizer(texts, TokenizerSection(vocabulary=320), "llama")
    run = config(write(tmp_path / "a.jsonl", texts), held_out=0)
    whole = tokenise(run, cutting, tmp_path / "whole").sources[0].tokens
    cutting.backend_tokenizer.enable_truncation(8)
    cutting.backend_tokenizer.enable_padding(length=12)
    manifest = tokenise(run, cutting, tmp_path / "tokens")
    assert manifest.sources[0].tokens == whole
    assert documents(tmp_path / "tokens", manifest.sources[0], manifest, cutting) == texts
    assert cutting.backend_tokenizer.truncation is not None, "the caller's own is left alone"


def test_the_fingerprint_is_of_contents_and_not_of_places(tmp_path, tokenizer):
    found = []
    for name, texts in (("here", TEXTS), ("some where else", TEXTS), ("other", TEXTS[:-1])):
        (tmp_path / name).mkdir()
        run = config(write(tmp_path / name / "a.jsonl", texts), held_out=0.1)
        found.append(tokenise(run, tokenizer, tmp_path / name / "tokens").fingerprint)
    assert found[0] == found[1] != found[2]


def test_several_shards_hold_what_one_holds(tmp_path, tokenizer, monkeypatch):
    run = config(write(tmp_path / "a.jsonl", TEXTS), held_out=0.1)
    one = tokenise(run, tokenizer, tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD_TOKENS", 100)
    many = tokenise(run, tokenizer, tmp_path / "many")
    assert len(many.sources[0].shards) > 3
    assert documents(tmp_path / "one", one.sources[0], one, tokenizer) == documents(
        tmp_path / "many", many.sources[0], many, tokenizer
    )


def test_every_kind_of_file_gives_the_same_documents(tmp_path, tokenizer):
    rows = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS)
    (tmp_path / "a.jsonl").write_text(rows)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as stream:
        stream.write(rows)
    parquet.write_table(pyarrow.table({"text": TEXTS}), tmp_path / "c.parquet")
    found = []
    for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"):
        folder = tmp_path / name.partition(".")[0]
        manifest = tokenise(config(str(tmp_path / name), held_out=0), tokenizer, folder)
        found.append(documents(folder, manifest.sources[0], manifest, tokenizer))
    assert found == [TEXTS] * 3


def test_held_out_files_have_columns_of_their_own_and_share_the_limit(tmp_path, tokenizer):
    train = write(tmp_path / "a.jsonl", TEXTS)
    plain = write(tmp_path / "p.jsonl", [*TEXTS[:30], TEXTS[0]])
    (tmp_path / "q.jsonl").write_text(
        "".join(json.dumps({"number": t[:17], "rest": t[17:]}) + "\n" for t in TEXTS[25:40])
    )
    texts = ["text", "{number}{rest}"]
    evaluation = [plain, str(tmp_path / "q.jsonl")]
    run = config(train, evaluation=evaluation, evaluation_text=texts)
    manifest = tokenise(run, tokenizer, tmp_path / "tokens")
    held = [documents(tmp_path / "tokens", p, manifest, tokenizer) for p in manifest.evaluation]
    assert held == [TEXTS[:30], TEXTS[30:40]]
    assert [p.duplicates for p in manifest.evaluation] == [1, 5]
    assert [p.name for p in manifest.evaluation] == [f"{tmp_path.name}/p", f"{tmp_path.name}/q"]
    assert documents(tmp_path / "tokens", manifest.sources[0], manifest, tokenizer) == TEXTS[40:]
    limited = run.model_copy(
        update={"report": run.report.model_copy(update={"evaluation_tokens": 40})}
    )
    manifest = tokenise(limited, tokenizer, tmp_path / "tokens")
    assert all(20 <= p.tokens < 40 for p in manifest.evaluation)
    assert manifest.sources[0].documents == 20


def test_nothing_left_is_refused(tmp_path, tokenizer):
    train = write(tmp_path / "a.jsonl", TEXTS)
    with pytest.raises(DataError, match="no document is left"):
        tokenise(config(train, evaluation=train), tokenizer, tmp_path / "tokens")
    assert not (tmp_path / "tokens").exists()
