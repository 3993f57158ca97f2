"""Losses and their gradients, against what they are by hand, in float64."""

from __future__ import annotations

import math

import pytest
import torch

from fedllm.alignment.losses import (
    clipped_objective,
    clipped_share,
    clipped_value_loss,
    kl_estimate,
    kl_price,
)

CLIP = 0.2


def doubles(*values: float, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # Within the clip: minus ratio times advantage, in both value and gradient.
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -1.0, 0.9, 0.9),
        # A gain that is there already is followed no farther.
        (1.5, 2.0, -2.4, 0.0),
        (0.5, -1.0, 0.8, 0.0),
        # A loss is followed however far.
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -1.0, 1.5, 1.5),
    ],
)
def test_the_clipped_objective(ratio, advantage, loss, slope):
    now = doubles(math.log(ratio) - 1.0, grad=True)
    found = clipped_objective(now, doubles(-1.0), doubles(advantage), CLIP)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    found.sum().backward()
    assert float(now.grad) == pytest.approx(slope, abs=1e-12)


def test_a_step_down_makes_good_tokens_likelier():
    now = doubles(-1.0, -1.0, grad=True)
    clipped_objective(now, doubles(-1.0, -1.0), doubles(1.0, -1.0), CLIP).sum().backward()
    good, bad = (-now.grad).tolist()
    assert good > 0 > bad


def test_how_many_tokens_are_clipped():
    now = doubles(*(math.log(r) for r in (1.0, 1.1, 1.3, 0.7)))
    assert clipped_share(now, torch.zeros(4, dtype=torch.float64), CLIP) == 0.5


def test_the_estimate_of_kl_and_its_gradient():
    now = doubles(-1.0, -2.0, -0.5, grad=True)
    reference = doubles(-1.5, -1.0, -0.5)
    found = kl_estimate(now, reference)
    wanted = [math.exp(-0.5) - 1 + 0.5, math.exp(1.0) - 1 - 1.0, 0.0]
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)
    found.sum().backward()
    # 1 - reference / policy: what is likelier than under the reference is pushed down.
    wanted = [1 - math.exp(-0.5), 1 - math.exp(1.0), 0.0]
    assert now.grad.tolist() == pytest.approx(wanted, abs=1e-12)


def test_the_estimate_of_kl_is_unbiased():
    policy, reference = doubles(0.5, 0.3, 0.2), doubles(0.2, 0.2, 0.6)
    exact = float((policy * (policy / reference).log()).sum())
    mean = float((policy * kl_estimate(policy.log(), reference.log())).sum())
    assert mean == pytest.approx(exact, abs=1e-12)
    # In the other direction it would be another number.
    other = float((reference * (reference / policy).log()).sum())
    assert abs(exact - other) > 0.01


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        # Before it was 1, and 3 would have been right.
        (1.1, 0.5 * 1.9**2, -1.9),
        # Farther than the clip: the clipped one is the larger error, and has no gradient.
        (2.0, 0.5 * 1.5**2, 0.0),
        # In the wrong direction its own error is the larger.
        (0.0, 0.5 * 3.0**2, -3.0),
    ],
)
def test_the_loss_of_values(value, loss, slope):
    now = doubles(value, grad=True)
    found = clipped_value_loss(now, doubles(1.0), doubles(3.0), 0.5)
    assert found.item() == pytest.approx(loss, abs=1e-12)
    found.sum().backward()
    assert float(now.grad) == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(
    ("kl", "price"),
    [
        (4.0, 0.2),
        (4.4, 0.2 * math.exp(0.05)),
        (3.6, 0.2 * math.exp(-0.05)),
        # Of however far, as of twice the target; and never below the least.
        (400.0, 0.2 * math.exp(0.5)),
        (0.0, max(0.2 * math.exp(-0.5), 0.13)),
    ],
)
def test_the_price_of_kl_rises_above_the_target_and_falls_back_below_it(kl, price):
    assert kl_price(0.2, kl, 4.0, 0.13) == pytest.approx(price, abs=1e-15)
    assert kl_price(0.2, kl, None, 0.13) == 0.2
