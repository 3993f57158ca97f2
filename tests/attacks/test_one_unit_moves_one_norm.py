"""One unit moves a clipped sum by one clipping norm, whatever adapter and texts are made for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedllm.errors import PeerError
from fedllm.federation.site.orders import LARGEST_VALUE, _read_adapter
from fedllm.mechanisms import LocalSettings
from fedllm.privacy.dpsgd import OuterProducts, added_up, clipped
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import unit_scores
from fedllm.training.local import clipped_gradient_sum

SETTINGS = LocalSettings(1, 1.0, 10.0, 64, "sgd", 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("ulp", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e18])
@pytest.mark.parametrize("norm", [1e-12, 1.0])
def test_gradients_of_one_person_that_cancel_add_one_norm_at_most(ulp, scale, norm):
    """Two records whose gradients are opposite but for a rounding."""
    values = torch.from_numpy(RandomStream.seeded(1, "x").normal(384)).float() * scale
    other = torch.nextafter(values, torch.full_like(values, torch.inf)) if ulp else values
    backprops = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    outer = OuterProducts(backprops, torch.stack([values, other]))
    for of in (outer, torch.einsum("bo,bi->boi", outer.backprops, outer.activations)):
        added = clipped(added_up([of]), norm).values
        assert np.linalg.norm(added / norm) <= 1 + 1e-14


@pytest.mark.parametrize("lora", [{"rank": 0}, {"last_layers": None}], ids=["head", "layers"])
@pytest.mark.parametrize("persons", [None, list(range(11))], ids=["records", "persons"])
def test_one_long_text_decides_nothing_for_the_others(tiny_model, random_dataset, lora, persons):
    """Padding that turns to NaN, as an adapter can be made to do."""
    model = tiny_model(lora=lora)
    short = random_dataset(11, persons=persons)
    # Ten texts of five tokens and one of fourteen; then all of five.
    lengths = np.array([5] * 10 + [14])
    tokens = 4 + RandomStream.seeded(2, "t").below(8, int(lengths.sum())).astype(np.int32)
    long = replace(short, tokens=tokens, offsets=np.concatenate([[0], np.cumsum(lengths)]))
    cut = replace(short, tokens=tokens[:55], offsets=5 * np.arange(12))
    embedding = model.module.backbone.get_input_embeddings()
    with torch.no_grad():
        embedding.weight[0] = 1e30
    sums = [
        clipped_gradient_sum(model, data, SETTINGS, RandomStream.seeded(3))[0]
        for data in (long, cut)
    ]
    # The one text is replaced by another: at most once out and once in.
    assert np.linalg.norm(sums[0] - sums[1]) <= 2 + 1e-5
    scores = [np.nan_to_num(unit_scores(model, data), nan=-1.0) for data in (long, cut)]
    np.testing.assert_allclose(scores[0][:10], scores[1][:10], atol=1e-4)


def test_an_adapter_at_which_rounding_decides_is_refused_in_a_private_run():
    for value in (2 * LARGEST_VALUE, -1e18):
        blob = np.array([1.0, value], dtype="<f4").tobytes()
        with pytest.raises(PeerError, match="beyond 1000"):
            _read_adapter(blob, 2, private=True)
        assert _read_adapter(blob, 2, private=False)[1] == np.float32(value)
    largest = np.array([LARGEST_VALUE, -LARGEST_VALUE], dtype="<f4")
    assert _read_adapter(largest.tobytes(), 2, private=True).tolist() == largest.tolist()
