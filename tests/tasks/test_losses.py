import numpy as np
import pytest
import torch

from fedllm.tasks.language import token_losses
from fedllm.training.objectives import record_losses


def test_classification_loss_is_cross_entropy(tiny_model, random_dataset):
    model, batch = tiny_model("bert"), random_dataset(5).batch(np.arange(5))
    logits = model.module(batch)
    expected = torch.logsumexp(logits, 1) - logits[torch.arange(5), batch["labels"]]
    torch.testing.assert_close(record_losses(model, batch), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_token_losses_are_averaged_within_each_record(kind, tiny_model, random_dataset):
    model = tiny_model(kind, "instruction")
    batch = random_dataset(5, "instruction").batch(np.arange(5))
    batch["labels"][3, :] = -100  # nothing counts in this record
    batch["labels"][1, 2] = -100
    logits = model.module.backbone(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).logits
    for row in range(5):
        each = torch.nn.functional.cross_entropy(
            logits[row, :-1], batch["labels"][row, 1:], reduction="none", ignore_index=-100
        )
        counted = batch["labels"][row, 1:] != -100
        expected = each[counted].mean() if counted.any() else torch.tensor(0.0)
        torch.testing.assert_close(record_losses(model, batch)[row], expected, atol=1e-5, rtol=1e-4)
    losses, rows = token_losses(model, batch)
    assert len(losses) == len(rows) == int((batch["labels"][:, 1:] != -100).sum())


def test_a_batch_without_any_counted_token_has_zero_loss_and_gradient(tiny_model, random_dataset):
    model = tiny_model("gpt2", "causal")
    batch = random_dataset(2, "causal").batch(np.arange(2))
    batch["labels"][:] = -100
    losses = record_losses(model, batch)
    assert losses.tolist() == [0.0, 0.0]
    gradients = torch.autograd.grad(losses.sum(), model.trained, materialize_grads=True)
    assert not any(bool(g.any()) for g in gradients)
