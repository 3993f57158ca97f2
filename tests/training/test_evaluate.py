import numpy as np
import pytest
import torch

from fedllm.errors import DataError
from fedllm.training.evaluate import evaluate


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_classification_is_measured_over_records(batch_size, tiny_model, random_dataset):
    model, data = tiny_model("bert"), random_dataset(11)
    model.module.requires_grad_(False)
    batch = data.batch(np.arange(11))
    logits = model.module(batch)
    found = evaluate(model, data, batch_size)
    loss = torch.nn.functional.cross_entropy(logits, batch["labels"])
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    right = (logits.argmax(1) == batch["labels"]).float().mean()
    assert found["accuracy"] == pytest.approx(float(right))
    assert found["records"] == 11


@pytest.mark.parametrize("batch_size", [1, 4])
def test_language_models_are_measured_over_tokens(batch_size, tiny_model, random_dataset):
    model, data = tiny_model("llama", "instruction"), random_dataset(11, "instruction")
    model.module.requires_grad_(False)
    batch = data.batch(np.arange(11))
    states = model.module.stack.last_states(batch)
    logits = model.module.backbone.lm_head(states)[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    )
    found = evaluate(model, data, batch_size)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert found["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-3)
    assert found["tokens"] == int((batch["labels"][:, 1:] != -100).sum())


def test_evaluation_leaves_no_gradients_and_stays_in_training_mode(tiny_model, random_dataset):
    model = tiny_model()
    evaluate(model, random_dataset(3))
    assert model.module.training
    assert all(p.grad is None and p.requires_grad for p in model.trained)


def test_nothing_to_evaluate_is_an_error(tiny_model, random_dataset):
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate(tiny_model(), random_dataset(0))
