"""A core's basis of public texts: gradients of one size in it, made by the coordinator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.federation import LABELS, records, small_config, write_jsonl
from support.tasks import load_model
from support.tiny_models import save_tiny

from fedllm.adapters import adapter_of
from fedllm.errors import ConfigError, DataError
from fedllm.federation.protocol.terms import shared_config
from fedllm.models.curvature import _looked, even_out_cores, evened
from fedllm.models.lora import lora_layers
from fedllm.randomness import RandomStream
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.serving.released import load_released
from fedllm.tasks.beginning import begin
from fedllm.tasks.public_texts import read_texts
from fedllm_server.simulation import simulate

TEXTS = [(5, 6, 7, 8, 9, 10, 11), (9, 8, 7, 12), (10, 11, 5, 12, 13, 14), (6, 6, 13, 5, 9)]


def leaning(width, seed=1):
    """Return the covariance of states of which most lies along one direction, as a model's do."""
    stream = np.random.default_rng(seed)
    turn = np.linalg.qr(stream.normal(size=(width, width)))[0]
    return torch.from_numpy(turn * np.r_[100.0, 0.8 ** np.arange(width - 1)] @ turn.T)


def test_outputs_of_rows_have_one_size_and_hardly_any_correlation():
    covariance = leaning(12)
    rows = evened(covariance, 6, RandomStream.seeded(1))
    after = rows @ covariance @ rows.T
    assert float(after.diagonal().mean()) == pytest.approx(1)
    # A random orthogonal A has all of its outputs along that one direction.
    plain = torch.linalg.qr(torch.from_numpy(np.random.default_rng(3).normal(size=(12, 6)))).Q.T
    before = plain @ covariance @ plain.T
    first = [float(torch.linalg.eigvalsh(m)[-1] / m.trace()) for m in (before, after)]
    assert first[0] > 0.9 and first[1] < 0.4


def test_of_even_states_rows_stay_orthogonal():
    rows = evened(torch.eye(9, dtype=torch.float64) * 4, 5, RandomStream.seeded(2))
    torch.testing.assert_close(rows @ rows.T, torch.eye(5, dtype=torch.float64) / 4)


def cored(tmp_path, kind="llama", **lora):
    folder = save_tiny(kind, tmp_path / kind)
    return load_model(
        small_config(folder, task="causal", lora={"rank": 3, "method": "core", **lora}), ()
    )


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_every_core_gets_a_basis_of_its_own_inputs_and_slopes(tmp_path, kind):
    model = cored(tmp_path, kind)
    before = model.values(model.tensors)
    even_out_cores(model, TEXTS, 7)
    after = model.values(model.tensors)
    for segment in model.tensors.segments:
        moved = not np.array_equal(before[segment.slice], after[segment.slice])
        assert moved == (segment.kind in "AB"), segment.name
    assert not model.adapter().any()
    again = cored(tmp_path / "again", kind)
    even_out_cores(again, TEXTS, 7)
    np.testing.assert_allclose(again.values(again.tensors), after, atol=1e-5)
    even_out_cores(again, TEXTS, 8)
    assert not np.allclose(again.values(again.tensors), after, atol=1e-3)


def test_along_such_texts_no_direction_is_most_of_what_a_core_sees(tmp_path):
    """Of each layer's inputs behind A, and of the slopes behind B."""

    def first_shares(model):
        layers = lora_layers(model.module)
        shares = []
        for name, seen in _looked(model, layers, TEXTS).items():
            a = layers[name].lora_A["default"].weight.detach().double()
            b = layers[name].lora_B["default"].weight.detach().double()
            for after in (a @ seen.inputs @ a.T, b.T @ seen.slopes @ b):
                shares.append(float(torch.linalg.eigvalsh(after)[-1] / after.trace()))
        return np.array(shares)

    model = cored(tmp_path)
    before = first_shares(model)
    even_out_cores(model, TEXTS, 7)
    after = first_shares(model)
    assert after.mean() < 0.5 < before.mean()
    # One third each would be even.
    assert after.max() < 0.7


def test_the_gradient_of_such_a_text_is_of_the_order_of_the_usual_clipping_norm(tmp_path):
    model = cored(tmp_path)
    even_out_cores(model, TEXTS, 7)
    norms = []
    for text in TEXTS:
        ids = torch.tensor([text])
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        found = torch.autograd.grad(model.module.token_losses(batch)[0].mean(), model.trained)
        norms.append(float(torch.cat([g.flatten() for g in found]).norm()))
    # Tokens of a random model's text are alike, and add up.
    assert 0.2 < np.median(norms) < 10


@pytest.fixture
def made(tmp_path):
    def config(**lora):
        train = write_jsonl(tmp_path / "train.jsonl", records(60))
        public = write_jsonl(tmp_path / "public.jsonl", records(20, seed=5))
        return small_config(
            save_tiny("llama", tmp_path / "llama"),
            task="causal",
            data={"train": str(train), "labels": None},
            lora={"rank": 3, "method": "core", "public_texts": str(public), **lora},
            rounds={"count": 2},
        )

    return config


def test_a_run_keeps_the_basis_and_what_it_releases_does_the_same_alone(made, tmp_path):
    config = made()
    simulate(config, tmp_path / "run", observers=[])
    found = load_checkpoint(tmp_path / "run" / "checkpoints").adapter
    model = load_model(config, ())
    texts = read_texts(config.lora.public_texts, "text", model.tokenizer, config.model.max_length)
    even_out_cores(model, texts, config.seed)
    method = adapter_of(model)
    for segment in method.down.segments:
        same = np.allclose(method.held()[segment.slice], found[segment.slice], atol=1e-5)
        assert same == (segment.kind != "R"), segment.name
    released = load_released(tmp_path / "run").model
    start = adapter_of(released).start()
    for segment in method.down.segments:
        wanted = found[segment.slice] if segment.kind != "R" else 0.0
        np.testing.assert_allclose(start[segment.slice], wanted, atol=1e-6)
    assert shared_config(config).lora.public_texts is None


def test_without_texts_the_basis_is_of_the_bases_own_weights(made, tmp_path):
    config = made(public_texts=None)
    simulate(config, tmp_path / "run", observers=[])
    found = load_checkpoint(tmp_path / "run" / "checkpoints").adapter
    method = adapter_of(load_model(config, ()))
    for segment in method.down.segments:
        if segment.kind != "R":
            np.testing.assert_array_equal(method.start()[segment.slice], found[segment.slice])


def test_a_task_with_labels_and_texts_without_a_loss_are_refused(tmp_path):
    bert = small_config(save_tiny("bert", tmp_path / "bert"), lora={"rank": 2, "method": "core"})
    with pytest.raises(ConfigError, match="next token"):
        even_out_cores(load_model(bert, LABELS), TEXTS, 1)
    with pytest.raises(DataError, match="no loss"):
        even_out_cores(cored(tmp_path), [(5,)], 1)


def test_texts_that_say_nothing_of_one_layer_are_refused(tmp_path):
    """In texts of two tokens no query has a choice: of its slopes the basis would be NaN."""
    model = cored(tmp_path, target_modules=["q_proj", "v_proj"])
    before = model.values(model.tensors)
    with pytest.raises(DataError, match=r"changes with layer .*q_proj"):
        even_out_cores(model, [(5, 6), (9, 8)], 7)
    np.testing.assert_array_equal(model.values(model.tensors), before)


def test_a_base_that_gives_no_numbers_is_refused(tmp_path):
    model = cored(tmp_path)
    with torch.no_grad():
        model.module.backbone.get_input_embeddings().weight[7] = torch.inf
    with pytest.raises(DataError, match="gives no numbers"):
        even_out_cores(model, TEXTS, 7)


def test_what_an_earlier_run_trained_decides_nothing(made):
    """A process keeps the model of its last run."""
    config = made()
    fresh, used = load_model(config, ()), load_model(config, ())
    used.set_adapter(np.linspace(-3, 3, len(used.adapter())))
    for model in (fresh, used):
        begin(config, model)
    for model in (fresh, used):
        np.testing.assert_array_equal(model.untrained(model.tensors), fresh.values(fresh.tensors))
