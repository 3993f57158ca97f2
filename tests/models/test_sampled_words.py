"""Losses that compare a token with some words: the right sum on the mean, of one record alone."""

import math

import numpy as np
import pytest
import torch
from support.decoders import loaded
from support.doubles import doubles
from support.tiny_models import save_tiny

from fedllm.config import RunConfig, parse
from fedllm.errors import ConfigError
from fedllm.mechanisms import LocalSettings
from fedllm.models.readout import _Some
from fedllm.models.sampled_words import Words, chances_of
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import evaluate
from fedllm.training.local import train_locally
from fedllm.training.made_up import MadeUpTraining
from fedllm.training.objectives import record_losses

# Logits that are as they are, cut off, or scaled.
KINDS = ["llama", "gemma2", "granite"]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return loaded(save_tiny(request.param, tmp_path_factory.mktemp(request.param)), request.param)


def gradient_of(model, losses):
    return torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), model.trained)])


def words_of(model, ids, weight=0.0):
    return Words(torch.tensor(ids), torch.full((len(ids),), weight))


def test_among_all_words_losses_and_gradients_are_the_whole_ones(model, random_dataset):
    size = model.module.backbone.get_output_embeddings().weight.shape[0]
    batch = random_dataset(3, "instruction").batch(np.arange(3))
    with doubles():
        whole = record_losses(model, batch)
        wanted = gradient_of(model, whole)
        with model.module.readout.among(words_of(model, range(size))):
            some = record_losses(model, batch)
            found = gradient_of(model, some)
    torch.testing.assert_close(some, whole)
    torch.testing.assert_close(found, wanted)


def test_among_some_words_the_loss_is_as_by_hand(model, random_dataset, monkeypatch):
    monkeypatch.setattr(model.module.readout, "tokens_at_once", 3)
    batch = random_dataset(2, "instruction").batch(np.arange(2))
    ids, weight = [1, 4, 5, 9, 13], math.log(3.0)
    with doubles():
        logits, targets, rows = model.module(batch)
        hand = []
        for row, target in zip(logits.double(), targets.tolist(), strict=True):
            others = sum(math.exp(row[w] + weight) for w in ids if w != target)
            hand.append(math.log(math.exp(row[target]) + others) - float(row[target]))
        wanted = [np.mean(np.array(hand)[rows.numpy() == k]) for k in range(2)]
        with model.module.readout.among(words_of(model, ids, weight)):
            found = record_losses(model, batch)
    assert any(t in ids for t in targets.tolist()) and any(t not in ids for t in targets.tolist())
    np.testing.assert_allclose(found.detach().numpy(), wanted, rtol=1e-5)


def test_what_a_record_adds_does_not_depend_on_its_company(model, random_dataset):
    data = random_dataset(4, "instruction")
    with doubles(), model.module.readout.among(words_of(model, [4, 7], 1.0)):
        together = record_losses(model, data.batch(np.arange(4)))
        alone = [record_losses(model, data.batch(np.array([k])))[0] for k in range(4)]
        gradient = torch.autograd.grad(together[2], model.trained)
        by_itself = torch.autograd.grad(alone[2], model.trained)
    torch.testing.assert_close(together, torch.stack(alone))
    for one, other in zip(gradient, by_itself, strict=True):
        torch.testing.assert_close(one, other)


def test_the_estimated_sum_is_right_on_the_mean():
    stream, expected = RandomStream.seeded(3, "test"), np.linspace(1, 40, 60) ** 2
    chances = chances_of(expected / expected.sum(), 20)
    assert chances.sum() == pytest.approx(20)
    terms = np.random.default_rng(0).exponential(1.0, 60)
    found = [(terms / chances)[stream.uniform(60) < chances].sum() for _ in range(4000)]
    error = np.std(found) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(terms.sum(), abs=4 * error)


def test_likelier_words_are_drawn_more_often_and_none_weighs_without_bound():
    expected = np.array([0.9, 0.09, 0.01, *[0.0] * 97])
    chances = chances_of(expected, 10)
    assert list(np.argsort(-chances)[:3]) == [0, 1, 2]
    assert chances.sum() == pytest.approx(10)
    assert chances.max() == 1 and chances.min() > 0.02


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_is_refused(kind, tmp_path):
    model = loaded(save_tiny(kind, tmp_path), kind)
    with (
        pytest.raises(ConfigError, match="decoder without an encoder"),
        model.words.drawn(6, RandomStream.seeded(1, "test")),
    ):
        pass


def test_a_heads_bias_counts():
    head = torch.nn.Linear(5, 9)
    some = _Some(head, Words(torch.tensor([2, 6]), torch.zeros(2)))
    states = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    some.others = torch.tensor([0])
    torch.testing.assert_close(some.logits(states), head(states)[:, [2, 6, 0]])


def test_outside_and_after_an_error_all_words_count_again(model, random_dataset):
    batch = random_dataset(2, "instruction").batch(np.arange(2))
    with doubles():
        whole = record_losses(model, batch)
        with pytest.raises(KeyError), model.words.drawn(8, RandomStream.seeded(1, "test")):
            some = record_losses(model, batch)
            raise KeyError
        after = record_losses(model, batch)
        with model.words.drawn(None, RandomStream.seeded(1, "test")):
            none = record_losses(model, batch)
    assert not torch.allclose(some, whole)
    assert torch.equal(after, whole) and torch.equal(none, whole)


def test_draws_differ_and_what_is_expected_is_the_models_own(model):
    before = model.adapter()
    shares = model.words._expected
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    np.testing.assert_array_equal(model.adapter(), before)
    stream, seen = RandomStream.seeded(2, "test"), set()
    for _ in range(8):
        with model.words.drawn(6, stream):
            seen.add(tuple(model.module.readout._some.words.ids.tolist()))
    assert len(seen) > 4


def test_an_adapter_that_diverged_leaves_nothing_for_those_after_it(tmp_path):
    """Chances are kept as long as a process runs: they are those of the base, at every site."""
    fresh, other = (loaded(save_tiny("llama", tmp_path / name), "llama") for name in "ab")
    other.set_adapter(np.full(len(other.adapter()), 1e30))
    with other.words.drawn(6, RandomStream.seeded(1, "test")):
        pass
    np.testing.assert_array_equal(other.words._expected, fresh.words._expected)


def test_as_many_words_as_there_are_mean_all(model, random_dataset):
    batch = random_dataset(2, "instruction").batch(np.arange(2))
    size = model.module.backbone.get_output_embeddings().weight.shape[0]
    with doubles():
        whole = record_losses(model, batch)
        with model.words.drawn(size, RandomStream.seeded(1, "test")):
            assert torch.equal(record_losses(model, batch), whole)


def test_a_model_that_mixes_logits_of_words_is_refused(tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaForCausalLM

    model, forward = loaded(save_tiny("llama", tmp_path), "llama"), LlamaForCausalLM.forward

    def mixing(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits - output.logits.mean(-1, keepdim=True)
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", mixing)
    with (
        pytest.raises(ConfigError, match="each word's logit"),
        model.words.drawn(6, RandomStream.seeded(1, "test")),
    ):
        pass


@pytest.mark.parametrize("noise_multiplier", [None, 1.0])
def test_training_draws_once_for_all_records_and_evaluation_compares_with_all(
    model, random_dataset, monkeypatch, noise_multiplier
):
    data, drawn = random_dataset(6, "instruction"), []
    among = type(model.module.readout).among

    def counting(self, words):
        drawn.append(words)
        return among(self, words)

    before = evaluate(model, data)
    monkeypatch.setattr(type(model.module.readout), "among", counting)
    settings = LocalSettings(
        2, 1.0, 6.0, 2, "sgd", 0.1, 0.1, 1.0, noise_multiplier, sampled_words=8
    )
    assert model.words._expected is not None
    drawn.clear()
    with doubles():
        result = train_locally(
            model, data, settings, RandomStream.seeded(1, "s"), RandomStream.seeded(1, "n")
        )
    assert len(drawn) == 1 and np.abs(result.update).max() > 0
    assert evaluate(model, data)["loss"] == before["loss"]


def test_a_run_asks_before_a_record_is_touched(tmp_path):
    model = loaded(save_tiny("t5", tmp_path), "t5")
    with pytest.raises(ConfigError, match="decoder without an encoder"):
        MadeUpTraining().require(model, 16, sampled_words=8)


def test_tasks_with_other_losses_are_refused():
    values = {
        "name": "tiny",
        "task": "classification",
        "model": {"path": "unused"},
        "data": {"train": "unused.jsonl"},
        "training": {"sampled_words": 64},
    }
    with pytest.raises(ConfigError, match="next tokens"):
        parse(RunConfig, values, "test")
