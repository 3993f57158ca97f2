import numpy as np
import pytest
import torch

from fedllm.errors import DataError
from fedllm.training.evaluate import evaluate, unit_scores


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


@pytest.mark.parametrize("room", [None, 0], ids=["kept", "no room"])
@pytest.mark.parametrize("broken", [(3,), (0, 3), range(6)], ids=["one", "two", "all"])
def test_a_record_at_which_the_frozen_part_breaks_off_is_scored_as_nothing_known(
    tiny_model, random_dataset, monkeypatch, broken, room
):
    """It must not stop the others, nor the answer: whether there is one would tell of it."""
    model, data = tiny_model(lora={"rank": 2, "last_layers": 1}), random_dataset(6)
    expected = unit_scores(model, data)
    assert np.isfinite(expected).all()
    bad = [data.batch(np.array([row]))["input_ids"] for row in broken]
    prefix = model.prefix._network.prefix

    def breaks(batch):
        if any(torch.equal(batch["input_ids"], ids) for ids in bad):
            raise RuntimeError("the words of a record")
        return prefix(batch)

    monkeypatch.setattr(model.prefix._network, "prefix", breaks)
    if room is not None:
        model.prefix._budget_bytes = room
    again = random_dataset(6)
    found = unit_scores(model, again)
    expected[list(broken)] = np.nan
    assert np.array_equal(found, expected, equal_nan=True)
