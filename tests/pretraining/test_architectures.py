"""Shapes, parameter counts, and numbers that do not fit together."""

import pytest
import torch

from fedllm.errors import ConfigError
from fedllm.pretraining.architectures import (
    SHAPES,
    build_model,
    choose_attention,
    measure,
    resolve_shape,
)
from fedllm.pretraining.config import NetworkSection, OptimizationSection, TokenizerSection
from fedllm.pretraining.tokenizer import train_tokenizer


@pytest.mark.parametrize("size", SHAPES)
def test_named_shapes_hold_together(size):
    shape = resolve_shape(NetworkSection(size=size))
    assert shape == SHAPES[size]
    assert shape.width % shape.heads == 0
    assert shape.heads % shape.key_value_heads == 0


def test_numbers_replace_those_of_the_named_shape():
    shape = resolve_shape(NetworkSection(size="1b", width=256, layers=3))
    assert (shape.layers, shape.width, shape.heads, shape.key_value_heads) == (3, 256, 4, 4)
    assert shape.inner == 704
    grouped = resolve_shape(NetworkSection(width=256, key_value_heads=2))
    assert grouped.key_value_heads == 2


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"width": 130, "heads": 4}, "cannot be split"),
        ({"width": 12, "heads": 4}, "even width"),
        ({"width": 256, "heads": 4, "key_value_heads": 3}, "no multiple"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers, message):
    with pytest.raises(ConfigError, match=message):
        resolve_shape(NetworkSection(**numbers))


def test_the_count_is_that_of_the_formula_and_the_seed_decides_the_weights():
    tokenizer = train_tokenizer(["a b c " * 50], TokenizerSection(vocabulary=301), "llama")
    section = NetworkSection(layers=2, width=64, inner=128)
    training = OptimizationSection()
    models = [build_model(section, training, tokenizer, seed) for seed in (1, 1, 2)]
    layer = 4 * 64 * 64 + 3 * 64 * 128 + 2 * 64
    vocabulary = models[0].config.vocab_size
    assert vocabulary % 8 == 0
    assert vocabulary >= len(tokenizer)
    size = measure(models[0], training)
    assert size.parameters == vocabulary * 64 + 2 * layer + 64
    assert size.training_bytes > 16 * size.parameters
    choose_attention(models[0], torch.device("cpu"), 1024)
    longer = training.model_copy(update={"sequence_length": 2 * training.sequence_length})
    kept = measure(models[0], longer).training_bytes - measure(models[0], training).training_bytes
    choose_attention(models[0], torch.device("cpu"), 1025)
    fused = measure(models[0], longer).training_bytes - measure(models[0], training).training_bytes
    assert kept > 1.5 * fused  # all scores, quadratic in the length
    first, same, other = (m.model.layers[0].mlp.up_proj.weight for m in models)
    assert (first == same).all()
    assert not (first == other).all()
