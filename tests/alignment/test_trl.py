"""The same losses, gradients and advantages as trl's, where it is installed (`pip install trl`).

Its trainers are asked for their losses without being set up to train: what they read of
themselves is given to them.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedllm.alignment.advantages import group_relative
from fedllm.alignment.losses import clipped_objective, kl_estimate
from fedllm.tasks.preference_losses import pair_losses

pytest.importorskip("trl", reason="trl is not installed")
pytestmark = pytest.mark.slow

BETA, CLIP, PRICE = 0.3, 0.2, 0.05
PAIRS, TOKENS = 5, 9
ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    gather=lambda values: values,
    gather_for_metrics=lambda values: values,
    reduce=lambda values, reduction: values,
)


def trainer(kind, **attributes):
    """A trainer that has what its loss reads."""
    made = kind.__new__(kind)
    made.__dict__ |= {
        "accelerator": ACCELERATOR,
        "model": SimpleNamespace(training=False),
        "_metrics": {"eval": defaultdict(list)},
        "aux_loss_enabled": False,
        "beta": BETA,
        **attributes,
    }
    return made


def drawn(*shape, spread=1.0):
    return spread * torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("objective", "theirs"), [("dpo", "sigmoid"), ("hinge", "hinge")])
def test_losses_of_pairs(objective, theirs):
    from trl.trainer.dpo_trainer import DPOTrainer

    torch.manual_seed(1)
    # Chosen answers first, then rejected ones, behind prompts of two tokens and more.
    lengths = torch.randint(3, TOKENS - 1, (2 * PAIRS,))
    place = torch.arange(TOKENS)
    answers = (place >= 2) & (place < 2 + lengths[:, None])
    logs = (-drawn(2 * PAIRS, TOKENS - 1).abs()).requires_grad_()
    before = -drawn(2 * PAIRS, TOKENS - 1).abs()

    def model(input_ids, attention_mask, labels, use_cache, fused_lm_head):
        seen = labels[:, 1:] != -100
        assert torch.equal(seen, answers[:, 1:])
        nothing = torch.zeros_like(logs)
        return SimpleNamespace(
            log_probs=logs * seen, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
        )

    counted = answers[:, 1:]
    reference = (before * counted).sum(1)
    asked = trainer(
        DPOTrainer,
        **{"ld_alpha": None, "precompute_ref_logps": True, "f_divergence_type": "reverse_kl"},
        **{"loss_types": [theirs], "loss_weights": [1.0], "use_weighting": False},
        **{"label_smoothing": 0.0, "_total_train_tokens": 0, "_tp_size": 1},
    )
    inputs = {
        "input_ids": torch.ones(2 * PAIRS, TOKENS, dtype=torch.int64),
        "attention_mask": torch.ones(2 * PAIRS, TOKENS, dtype=torch.int64),
        "completion_mask": answers.long(),
        "ref_chosen_logps": reference[:PAIRS],
        "ref_rejected_logps": reference[PAIRS:],
    }
    wanted = asked._compute_loss(model, inputs, False)
    gained = BETA * ((logs * counted).sum(1) - reference)
    found = pair_losses(objective, gained[:PAIRS] - gained[PAIRS:]).mean()
    same(found, wanted, logs)


@pytest.mark.parametrize("price", [0.0, PRICE])
def test_the_loss_of_grpo(price):
    from trl.trainer.grpo_trainer import GRPOTrainer

    torch.manual_seed(2)
    lengths = torch.randint(1, TOKENS, (PAIRS,))
    mask = torch.arange(TOKENS) < lengths[:, None]
    logs = (-drawn(PAIRS, TOKENS).abs()).requires_grad_()
    # So far that some ratios are clipped.
    sampled = logs.detach() + drawn(PAIRS, TOKENS, spread=0.3)
    reference = logs.detach() + drawn(PAIRS, TOKENS, spread=0.3)
    advantages = drawn(PAIRS)
    asked = trainer(
        GRPOTrainer,
        **{"beta": price, "loss_type": "bnpo", "importance_sampling_level": "token"},
        **{"epsilon_low": CLIP, "epsilon_high": CLIP, "top_entropy_quantile": 1.0},
        **{"off_policy_mask_threshold": None, "use_vllm": False, "_entropy_bonus_enabled": False},
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logs, torch.zeros_like(logs), None),
    )
    ids = torch.ones(PAIRS, TOKENS, dtype=torch.int64)
    inputs = {
        **{"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids},
        **{"completion_mask": mask.long(), "advantages": advantages},
        **{"old_per_token_logps": sampled, "ref_per_token_logps": reference},
    }
    wanted = asked._compute_loss(None, inputs)
    spread = advantages[:, None].expand(PAIRS, TOKENS)[mask]
    losses = clipped_objective(logs[mask], sampled[mask], spread, CLIP)
    found = (losses + price * kl_estimate(logs[mask], reference[mask])).mean()
    assert bool((((logs - sampled).exp() - 1).abs()[mask] > CLIP).any())
    same(found, wanted, logs)


def test_advantages_within_a_group():
    from trl.trainer.utils import nanstd

    # It divides by the standard deviation of a sample, which is larger than that of the group.
    rewards = torch.from_numpy(np.random.default_rng(3).normal(size=(4, 6)))
    spread = nanstd(rewards, dim=1, keepdim=True) * (5 / 6) ** 0.5
    wanted = (rewards - rewards.mean(1, keepdim=True)) / spread
    found = group_relative(rewards.flatten(), 6)
    torch.testing.assert_close(found, wanted.flatten(), rtol=1e-3, atol=1e-3)


def same(found, wanted, logs):
    """Value and gradient are the same, in float64."""
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
    slopes = [torch.autograd.grad(one, logs)[0] for one in (found, wanted)]
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-14)
    assert bool(slopes[0].any())
