"""Preferences: losses by hand in float64, one gradient an event, and their own words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tasks import record

from fedllm.config import RunConfig, parse
from fedllm.data.rankings import Ranking
from fedllm.errors import DataError, ShortOfMemoryError
from fedllm.mechanisms import LocalSettings
from fedllm.models import reference
from fedllm.models.sequences import AT_ONCE, KINDS, WORD, unpacked
from fedllm.privacy.dpsgd import clipped
from fedllm.randomness import RandomStream
from fedllm.tasks import preference_encoding, preference_losses, task_of
from fedllm.tasks.preference_asking import Selecting
from fedllm.training.local import clipped_gradient_sum

BETA = 0.3
SETTINGS = LocalSettings(1, 1.0, 12.0, 64, "sgd", 1.0, 1.0, 1.0, 1.0)
CASES = [
    ("llama", "dpo"),
    ("gpt2", "ipo"),
    ("llama", "hinge"),
    ("llama", "reward"),
    ("bert", "reward"),
    ("llama", "selector"),
]
each = pytest.mark.parametrize(("kind", "objective"), CASES)
EVENTS = (
    Ranking("my card", "", ("pay cash", "lost"), ((0, 1),)),
    Ranking("open", "bank", ("my fee", "close my loan", "rate"), ((2, 0), (2, 1), (0, 1), (1, 0))),
    Ranking("send", "", ("card", "cash"), ()),
)


@pytest.fixture(autouse=True)
def words_that_the_tiny_tokenizer_knows(monkeypatch):
    monkeypatch.setattr(preference_encoding, "WORDS", ("open", "close"))


def model_of(tiny_checkpoint, kind="llama", objective="dpo", rank=2, **model):
    values = {
        "name": "tiny",
        "task": "preference",
        "model": {"path": str(tiny_checkpoint(kind)), "max_length": 24, **model},
        "data": {"train": "t"},
        "preference": {"objective": objective, "beta": BETA},
        "lora": {"rank": rank, "last_layers": 2} if rank else {"rank": 0},
    }
    config = parse(RunConfig, values, "test")
    model = task_of(config).load_model(config)
    drawn = RandomStream.seeded(3, kind, objective).normal(model.manifest.length)
    model.set_adapter(0.5 * drawn)
    return model


def encoded(model, events=EVENTS, length=24):
    records = [record(f"a:{i}", **one.written()) for i, one in enumerate(events)]
    return task_of(model).encode(records, model.tokenizer, length)


def sequences_of(dataset, index):
    """Token ids and kinds of each sequence of a record, by hand."""
    part = slice(*dataset.offsets[index : index + 2])
    ids, tags = dataset.tokens[part], dataset.tags[part]
    return [
        (ids[tags // KINDS == k], tags[tags // KINDS == k] % KINDS)
        for k in range(tags.max() // KINDS + 1)
    ]


def logits_of(model, ids):
    """Logits (T, V), float64, of one sequence without padding."""
    given = torch.from_numpy(ids.astype(np.int64))[None]
    return model.module.backbone(given, attention_mask=torch.ones_like(given)).logits[0].double()


def likelihood(model, ids, kinds):
    logs = logits_of(model, ids).log_softmax(-1)
    places = [t for t in range(1, len(ids)) if kinds[t] == 1]
    return sum(float(logs[t - 1, ids[t]]) for t in places)


@torch.no_grad()
def score_by_hand(model, objective, sequence):
    ids, kinds = sequence
    if objective in ("dpo", "ipo", "hinge"):
        now = likelihood(model, ids, kinds)
        trained = model.adapter()
        model.set_adapter(model.initial)
        before = likelihood(model, ids, kinds)
        model.set_adapter(trained)
        return BETA * (now - before)
    given = torch.from_numpy(ids.astype(np.int64))[None]
    batch = {"input_ids": given, "attention_mask": torch.ones_like(given)}
    states = model.module.stack.last_states(batch)[0].double()
    pooled = states[-1] if model.module.pooling == "last" else states.mean(0)
    feature = model.module.feature_scale * pooled / pooled.norm()
    return float(model.module.head.weight[0].double() @ feature)


@torch.no_grad()
def margin_by_hand(model, objective, found, one, other):
    if objective != "selector":
        first, second = (score_by_hand(model, objective, found[k]) for k in (one, other))
        return first - second
    words = [int(found[k][0][-1]) for k in (min(one, other), max(one, other))]
    even = min(one, other)
    by_order = []
    for place, (ids, kinds) in enumerate(found[even : even + 2]):
        assert kinds[-1] == WORD
        last = logits_of(model, ids)[-2]
        by_order.append(float(last[words[place]] - last[words[1 - place]]))
    return (1 if one < other else -1) * sum(by_order) / 2


def loss_by_hand(objective, margin):
    if objective == "ipo":
        return (margin - 0.5) ** 2
    if objective == "hinge":
        return max(0.0, 1.0 - margin)
    return float(np.log1p(np.exp(-margin)))


@each
def test_losses_are_those_of_the_papers_in_float64(kind, objective, tiny_checkpoint):
    model = model_of(tiny_checkpoint, kind, objective)
    dataset = encoded(model)
    batch = model.attach(dataset, np.arange(3), dataset.batch(np.arange(3)))
    losses = task_of(model).losses(model, batch)
    assert losses.dtype == torch.float32
    for index, event in enumerate(EVENTS):
        found = sequences_of(dataset, index)
        assert len(dataset.pairs[index]) == len(event.pairs)
        by_hand = [
            loss_by_hand(objective, margin_by_hand(model, objective, found, one, other))
            for one, other in dataset.pairs[index]
        ]
        assert float(losses[index].detach()) == pytest.approx(np.mean(by_hand or [0]), abs=2e-5)
    # Computed on the way where nothing was attached, and the same.
    again = task_of(model).losses(model, dataset.batch(np.arange(3)))
    torch.testing.assert_close(again, losses, rtol=1e-5, atol=1e-6)
    assert not np.isclose(losses[:2].detach(), np.log(2)).any()


@each
def test_a_site_adds_one_clipped_gradient_of_each_event(kind, objective, tiny_checkpoint):
    model = model_of(tiny_checkpoint, kind, objective)
    dataset = encoded(model)
    config = parse(
        RunConfig,
        {
            "name": "x",
            "task": "preference",
            "model": {"path": "m"},
            "data": {"train": "t"},
            "preference": {"objective": objective},
            "lora": {"rank": 2},
            "privacy": {"epsilon": 3.0, "noise": "distributed"},
            "training": {"sampling_rate": 1.0, "local_steps": 1, "optimizer": "sgd"},
        },
        "test",
    )
    from fedllm.mechanisms import mechanism_of

    settings = mechanism_of(config).settings(3, 1.0)
    right = np.zeros(model.manifest.length)
    norms = []
    for index in range(3):
        loss = task_of(model).losses(model, dataset.batch(np.array([index]))).sum()
        parts = torch.autograd.grad(loss, model.trained, materialize_grads=True)
        whole = torch.cat([part.reshape(-1) for part in parts]).double().numpy()
        norms.append(float(np.linalg.norm(whole)))
        # So small that both events with pairs are cut: two clipped answers would be twice as long.
        right += clipped(whole, 1e-3).values
    assert min(norms[:2]) > 1e-3
    assert norms[2] == 0
    total, _ = clipped_gradient_sum(
        model,
        dataset,
        replace(settings, clipping_norm=1e-3, sampling_rate=1.0),
        RandomStream.secure(),
    )
    np.testing.assert_allclose(total, right, atol=2e-7)
    assert np.linalg.norm(total) <= 2e-3 + 1e-9


WORDS = ("pay", "cash", "lost", "fee", "rate")
MANY = Ranking(
    "my card",
    "",
    tuple(f"{one} {other}" for one in WORDS for other in WORDS if one != other),
    tuple((i, j) for i in range(20) for j in range(20) if i < j),
)


@each
def test_an_event_of_many_answers_is_computed_in_parts_and_clipped_once(
    kind, objective, tiny_checkpoint, monkeypatch
):
    model = model_of(tiny_checkpoint, kind, objective)
    dataset = encoded(model, [MANY])
    assert len(sequences_of(dataset, 0)) >= 20
    rows = []
    layers = model.module.stack.layers
    handles = [
        layer.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        for layer in (layers[0], layers[-1])
    ]
    settings = replace(SETTINGS, clipping_norm=1e-3)
    total, _ = clipped_gradient_sum(model, dataset, settings, RandomStream.secure())
    assert max(rows) == AT_ONCE
    with torch.no_grad():
        scores = task_of(model).scores(model, dataset.batch(np.array([0])))
    for handle in handles:
        handle.remove()
    assert max(rows) <= 8 * AT_ONCE
    for module in (preference_losses, reference):
        monkeypatch.setattr(module, "AT_ONCE", 10_000)
    loss = task_of(model).losses(model, dataset.batch(np.array([0]))).sum()
    parts = torch.autograd.grad(loss, model.trained, materialize_grads=True)
    whole = torch.cat([part.reshape(-1) for part in parts]).double().numpy()
    assert np.linalg.norm(whole) > 1e-3
    np.testing.assert_allclose(total, clipped(whole, 1e-3).values, atol=2e-8)
    with torch.no_grad():
        again = task_of(model).scores(model, dataset.batch(np.array([0])))
    np.testing.assert_allclose(scores, again, rtol=1e-5)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("kind", "rank"), [("llama", 2), ("llama", 0), ("bert", 0)])
def test_frozen_layers_that_are_kept_change_nothing(kind, rank, kept, tiny_checkpoint):
    model = model_of(tiny_checkpoint, kind, "reward", rank)
    dataset = encoded(model)
    indices = np.array([1, 0])
    batch = dataset.batch(indices)
    attached = model.attach(dataset, indices, batch)
    assert attached["states"].shape[1] == (3 if rank == 0 else batch["input_ids"].shape[1])
    if kept:
        attached = model.attach(dataset, indices, batch)
    torch.testing.assert_close(
        task_of(model).losses(model, attached),
        task_of(model).losses(model, batch),
        rtol=1e-4,
        atol=1e-5,
    )


@each
def test_the_longest_record_that_a_gpu_is_tried_with_has_the_longest_sequences(
    kind, objective, tiny_checkpoint
):
    from fedllm.training.made_up import _stretched

    model = model_of(tiny_checkpoint, kind, objective)
    batch = encoded(model).batch(np.array([0]))
    longest = unpacked(_stretched(batch, 3, 60), model.pad_id)["attention_mask"].sum(1).max()
    assert 40 <= int(longest) <= 60
    if objective != "selector":
        losses = task_of(model).losses(model, _stretched(batch, 3, 60))
        assert losses.shape == (3,)
        assert bool(torch.isfinite(losses).all())


LONG = "my card pay cash lost open bank fee close loan rate send " * 2


@pytest.mark.parametrize("length", [24, 25, 32, 33])
@pytest.mark.parametrize("words", [1, 2, 3])
def test_a_selector_never_reads_more_of_one_answer_than_of_the_other(
    words, length, tiny_checkpoint
):
    # Rows of pairs have the chosen answer first: a token more of it would be the label.
    model = model_of(tiny_checkpoint, "llama", "selector")
    ranking = Ranking(" ".join(["open"] * words), "", (LONG + "open", LONG + "card"), ((0, 1),))
    with pytest.raises(DataError, match="the same in the"):
        encoded(model, [ranking], length)


def test_answers_that_are_alike_in_what_is_read_take_no_score_from_the_others(tiny_checkpoint):
    model = model_of(tiny_checkpoint, "llama", "selector")
    ((one, other, *alike),) = Selecting(model, 25).judge(
        [("open", "", ["pay", "lost", LONG + "open", LONG + "card"])]
    )
    assert alike[0] == alike[1]
    assert len({one, other, alike[0]}) == 3


@pytest.mark.parametrize("error", [MemoryError, lambda: RuntimeError("can't allocate memory")])
def test_a_lack_of_memory_decides_for_no_event(error, tiny_checkpoint, monkeypatch):
    def gradient_sum(dataset):
        return clipped_gradient_sum(model, dataset, SETTINGS, RandomStream.seeded(3))[0]

    model, right = model_of(tiny_checkpoint), reference.answer_likelihoods
    expected, held = gradient_sum(encoded(model)), model.adapter()

    def short(*args):
        if model.prefix.used_bytes > most:
            raise error()
        return right(*args)

    monkeypatch.setattr(reference, "answer_likelihoods", short)
    # Full of what is kept of other records; and too small for any.
    most = 2000
    np.testing.assert_array_equal(gradient_sum(encoded(model)), expected)
    most = -1
    dataset = encoded(model)
    with pytest.raises(ShortOfMemoryError):
        gradient_sum(dataset)
    np.testing.assert_array_equal(model.adapter(), held)
    most = 1 << 40
    np.testing.assert_array_equal(gradient_sum(dataset), expected)
