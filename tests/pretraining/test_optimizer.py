"""Which parameters go where, and the schedule."""

import itertools
import math

import pytest
import torch

from fedllm.pretraining.architectures import build_model
from fedllm.pretraining.config import NetworkSection, OptimizationSection, TokenizerSection
from fedllm.pretraining.optimizer import Optimizers, learning_rate
from fedllm.pretraining.tokenizer import train_tokenizer


def test_schedule_rises_to_the_peak_and_ends_at_its_share():
    section = OptimizationSection(
        tokens=100 * 32 * 128, learning_rate=2.0, warmup=0.1, final_learning_rate=0.25
    )
    rates = [learning_rate(i, section) for i in range(section.steps)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert rates[-1] == pytest.approx(0.5, abs=0.01)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


@pytest.fixture
def model():
    tokenizer = train_tokenizer(["a b c " * 50], TokenizerSection(vocabulary=300), "llama")
    section = NetworkSection(layers=1, width=32, heads=2, inner=64, tie_embeddings=False)
    return build_model(section, OptimizationSection(), tokenizer, 0)


def test_muon_takes_hidden_matrices_only(model):
    optimizers = Optimizers(model, OptimizationSection(learning_rate=0.01, warmup=0.0))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    torch.manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizers.step(0)
    for name, p in model.named_parameters():
        change = (p.detach() - before[name] * (1 - 0.001 * (p.ndim == 2))) / 0.01
        if p.ndim == 2 and "embed" not in name and "lm_head" not in name:
            # Orthogonalised: all singular values alike, unlike a random matrix's.
            values = torch.linalg.svdvals(change)
            assert values.quantile(0.9) / values.quantile(0.1) < 2.0, name
            assert values.mean() == pytest.approx(0.2 * math.sqrt(max(p.shape)), rel=0.25), name
        else:
            # AdamW's first step is the sign of the gradient.
            assert torch.allclose(change.abs(), torch.ones_like(change), atol=1e-2), name


@pytest.mark.parametrize(
    ("architecture", "outside"),
    [("bert", ("embeddings", "pooler", "cls.")), ("t5", ("shared", "relative_attention_bias"))],
)
def test_heads_and_embeddings_of_other_architectures_stay_with_adamw(architecture, outside):
    tokenizer = train_tokenizer(["a b c " * 50], TokenizerSection(vocabulary=300), architecture)
    section = NetworkSection(architecture=architecture, layers=1, width=32, heads=2, inner=64)
    model = build_model(section, OptimizationSection(), tokenizer, 0)
    muon, adamw = Optimizers(model, OptimizationSection())._parts
    with_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    with_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert not with_muon & with_adamw
    for name, p in model.named_parameters():
        apart = p.ndim != 2 or any(part in name for part in outside)
        assert id(p) in (with_adamw if apart else with_muon), name


def test_adamw_alone_decays_matrices_and_not_norms(model):
    optimizers = Optimizers(
        model, OptimizationSection(optimizer="adamw", weight_decay=0.5, warmup=0.0)
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizers.step(0)
    for name, p in model.named_parameters():
        factor = 1 - 0.5 * 3e-3 if p.ndim == 2 else 1.0
        assert torch.allclose(p, before[name] * factor), name
