"""A of public texts: where inputs lie, at one strength, made once and by the coordinator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.federation import LABELS, records, small_config, write_jsonl
from support.tasks import load_model
from support.tiny_models import save_tiny

from fedllm.adapters import adapter_of
from fedllm.audit.attacks.sandbox import open_sandbox
from fedllm.errors import ConfigError, DataError
from fedllm.federation.protocol.terms import shared_config
from fedllm.models.explained import directions, explain_inputs
from fedllm.randomness import RandomStream
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.folder import config_digest
from fedllm.serving.released import load_released
from fedllm.tasks.public_texts import read_texts
from fedllm_server.simulation import simulate


def states(count, width, seed=1):
    """Return inputs of a layer that lie mostly in few directions, as a model's do."""
    found = np.random.default_rng(seed).normal(size=(count, width)) * 0.7 ** np.arange(width)
    turn = np.linalg.qr(np.random.default_rng(seed + 1).normal(size=(width, width)))[0]
    return torch.from_numpy(found @ turn + turn[0])


@pytest.mark.parametrize(("count", "width"), [(50, 12), (12, 50), (16, 16)])
def test_rows_are_the_first_right_singular_vectors_at_one_strength(count, width):
    given = states(count, width)
    rows = directions(given, 3)
    right = np.linalg.svd(given.numpy())[2][:3]
    lengths = rows.norm(dim=1)
    np.testing.assert_allclose(
        np.abs(np.sum(rows.numpy() * right, axis=1)), lengths, rtol=1e-9, atol=0
    )
    assert (rows.gather(1, rows.abs().argmax(1, keepdim=True)) > 0).all()
    np.testing.assert_allclose((given @ rows.T).square().mean(0), 1, rtol=1e-9)


def test_directions_that_texts_do_not_show_are_not_made_up():
    assert len(directions(states(2, 12), 3)) == 2
    assert len(directions(torch.ones(9, 5, dtype=torch.float64), 3)) == 1


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "classification"), ("llama", "causal"), ("t5", "instruction")]
)
def test_every_adapted_layer_sees_its_own_inputs(tmp_path, kind, task):
    model = load_model(
        small_config(
            save_tiny(kind, tmp_path / kind), task=task, lora={"rank": 2, "method": "eva"}
        ),
        LABELS,
    )
    before = model.values(model.tensors)
    explain_inputs(model, [(5, 6, 7, 8, 9), (9, 8, 7), (10, 11, 5, 12)])
    after = model.values(model.tensors)
    for segment in model.tensors.segments:
        moved = not np.array_equal(before[segment.slice], after[segment.slice])
        assert moved == (segment.kind == "A"), segment.name
    rows = [after[s.slice].reshape(s.shape) for s in model.tensors.segments if s.kind == "A"]
    for row in rows:
        assert abs(row[0] @ row[1]) < 1e-5 * np.linalg.norm(row[0]) * np.linalg.norm(row[1])


@pytest.fixture
def made(tiny_checkpoint, tmp_path):
    def config(public="public.jsonl", texts=20, **lora):
        train = write_jsonl(tmp_path / "train.jsonl", records(60))
        found = write_jsonl(tmp_path / public, records(texts, seed=5))
        return small_config(
            tiny_checkpoint("bert"),
            data={"train": str(train)},
            lora={"rank": 2, "method": "eva", "public_texts": str(found), **lora},
            rounds={"count": 2},
        )

    return config


def test_a_run_keeps_the_directions_of_the_public_texts(made, tmp_path):
    config = made()
    simulate(config, tmp_path / "run", observers=[])
    found = load_checkpoint(tmp_path / "run" / "checkpoints").adapter
    model = load_model(config, LABELS)
    texts = read_texts(config.lora.public_texts, "text", model.tokenizer, 64)
    explain_inputs(model, texts)
    method = adapter_of(model)
    for segment in method.down.segments:
        same = np.allclose(method.held()[segment.slice], found[segment.slice], atol=1e-6)
        assert same == (segment.kind == "A"), segment.name


def test_who_trains_from_the_beginning_begins_there_too(made, tmp_path):
    """Shadow models of an audit, and what a site trains for itself to compare with."""
    config = made()
    simulate(config, tmp_path / "run", observers=[])
    released = load_released(tmp_path / "run")
    sandbox = open_sandbox(config, 5, RandomStream.seeded(1))
    for model in (released.model, sandbox.model):
        start = adapter_of(model).start()
        for segment in adapter_of(model).down.segments:
            part = start[segment.slice]
            if segment.kind == "A":
                np.testing.assert_allclose(part, released.adapter[segment.slice], atol=1e-6)
            elif segment.kind == "B":
                assert not part.any()


def test_sites_are_not_told_where_the_texts_lie_and_a_run_may_move(made):
    config, moved = made(), made()
    assert shared_config(config).lora.public_texts is None
    elsewhere = moved.lora.model_copy(update={"public_texts": "/elsewhere/public.jsonl"})
    assert config_digest(moved.model_copy(update={"lora": elsewhere})) == config_digest(config)
    assert config_digest(made("other.jsonl")) != config_digest(config)


def test_without_texts_nothing_begins(made, tmp_path):
    with pytest.raises(ConfigError, match="needs public texts") as caught:
        simulate(made(public_texts=None), tmp_path / "run", observers=[])
    assert "lora.public_texts" in caught.value.remedy
    with pytest.raises(DataError, match="no file"):
        simulate(made(public_texts=str(tmp_path / "no.jsonl")), tmp_path / "two", observers=[])


def test_texts_that_say_too_little_are_refused(made, tmp_path):
    with pytest.raises(DataError, match=r"directions of the inputs.*lora.rank is 16") as caught:
        simulate(made(texts=1, rank=16), tmp_path / "run", observers=[])
    assert "more and longer texts" in caught.value.remedy


def test_another_method_reads_none(made):
    with pytest.raises(ConfigError, match="public_texts"):
        made(method="ffa")
