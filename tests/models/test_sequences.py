"""Records of many sequences are computed in parts, and their gradients are those of the whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedllm.models.sequences import AT_ONCE, by_parts

COUNT = 3 * AT_ONCE + 2


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()


@pytest.mark.parametrize("most", [2, AT_ONCE])
def test_parts_give_the_gradient_of_the_whole_in_float64(most):
    net, seen = network(), []
    sequences = {"input_ids": torch.randn(COUNT, 5, dtype=torch.float64), "canary": torch.arange(3)}

    def compute(part):
        seen.append(len(part["input_ids"]))
        assert len(part["canary"]) == 3
        return net(part["input_ids"])[:, 0]

    def gradients(found):
        # Every number stands in pairs with every other, as in an event.
        loss = nn.functional.softplus(found[:, None] - found[None]).mean()
        return torch.autograd.grad(loss, list(net.parameters()))

    whole = gradients(net(sequences["input_ids"])[:, 0])
    parts = gradients(by_parts(compute, sequences, most, list(net.parameters())))
    # Once forwards, and once more in the backward pass.
    assert max(seen) == most
    assert sum(seen) == 2 * COUNT
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    seen.clear()
    with torch.no_grad():
        torch.testing.assert_close(
            by_parts(compute, sequences, most), net(sequences["input_ids"])[:, 0]
        )
    assert (max(seen), sum(seen)) == (most, COUNT)


def test_a_ranking_of_eight_is_computed_at_once():
    sequences = {"input_ids": torch.randn(AT_ONCE, 5, dtype=torch.float64)}
    calls = []
    by_parts(lambda part: calls.append(part) or part["input_ids"][:, 0], sequences, AT_ONCE)
    assert calls == [sequences]
