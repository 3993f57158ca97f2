"""Layers that are run again for their gradient give the gradients of those that are not."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from support.doubles import doubles
from support.one_by_one import same, trained_somehow
from support.tasks import load_model
from support.tiny_models import DECODERS, ENCODER_DECODERS, ENCODERS, save_tiny

from fedllm.config import RunConfig, parse
from fedllm.errors import TrainingError
from fedllm.mechanisms import LocalSettings
from fedllm.models.recomputing import recomputed
from fedllm.privacy.dpsgd import forget_step, per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import evaluate
from fedllm.training.local import clipped_gradient_sum, train_locally
from fedllm.training.made_up import MadeUpTraining
from fedllm.training.objectives import record_losses

CASES = [
    *((kind, "classification") for kind in ENCODERS),
    *((kind, "instruction") for kind in [*DECODERS, *ENCODER_DECODERS]),
    ("bert", "token_classification"),
]
# Those whose layers are each of another build; that of the others is one of these.
QUICK = {
    "bert",
    "modernbert",
    "deberta-v2",
    "llama",
    "gemma3_text",
    "gpt2",
    "mixtral",
    "t5",
    "bart",
}
every_case = pytest.mark.parametrize(
    ("kind", "task"),
    [
        pytest.param(kind, task, marks=[] if kind in QUICK else pytest.mark.slow)
        for kind, task in CASES
    ],
)
SETTINGS = LocalSettings(
    steps=2,
    sampling_rate=1.0,
    expected_batch_size=4.0,
    microbatch_size=2,
    optimizer="sgd",
    learning_rate=0.1,
    head_learning_rate=0.1,
    clipping_norm=0.3,
    noise_multiplier=1.0,
)


def in_doubles(forward):
    def run(*args, **kwargs):
        with doubles():
            return forward(*args, **kwargs)

    return run


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Load models in float64 with a trained adapter, each once."""

    @cache
    def make(kind, task, layers=None, method="lora", targets="auto"):
        values = {
            "name": "tiny",
            "task": task,
            "model": {
                "path": str(folder(kind)),
                "max_length": 16,
                "head_start": "zero",
                "feature_center": "zero",
            },
            "data": {"train": "unused.jsonl"},
            "lora": {"rank": 2, "method": method},
        }
        if layers:
            values["lora"]["last_layers"] = layers
        if targets != "auto":
            values["lora"]["target_modules"] = [targets]
        labels = ("one", "two", "three") if "classification" in task else ()
        model = load_model(parse(RunConfig, values, "test"), labels)
        for layer in model.module.stack.layers:
            # A backward pass is outside of what `doubles` sees.
            layer.forward = in_doubles(layer.forward)
        return trained_somehow(model, kind, task)

    folder = cache(lambda kind: save_tiny(kind, tmp_path_factory.mktemp(kind)))
    return make


def gradients_of(model, data, settings):
    with doubles():
        total, seen = clipped_gradient_sum(model, data, settings, RandomStream.seeded(0))
    assert not seen.broken_units
    return torch.from_numpy(total)


WITH = replace(SETTINGS, activation_checkpointing=True)


@pytest.mark.parametrize("layers", [None, 2])
@every_case
def test_gradients_of_units_are_the_same(kind, task, layers, loaded, random_dataset):
    model = loaded(kind, task, layers)
    data = random_dataset(5, task, persons=[0, 1, 1, 1, 2])
    expected = gradients_of(model, data, SETTINGS)
    same(gradients_of(model, data, WITH), expected)
    same(gradients_of(model, data, SETTINGS), expected)


@pytest.mark.parametrize("method", ["lora", "ffa", "core"])
@pytest.mark.parametrize("targets", ["down_proj", "o_proj", "q_proj"])
def test_whichever_layer_comes_last_has_its_gradients(method, targets, loaded, random_dataset):
    """A hook must not fire before its layer has run again."""
    model = loaded("llama", "instruction", 2, method, targets)
    data = random_dataset(5, "instruction")
    same(gradients_of(model, data, WITH), gradients_of(model, data, SETTINGS))


@every_case
def test_a_step_without_privacy_is_the_same(kind, task, loaded, random_dataset):
    model, data = loaded(kind, task), random_dataset(5, task)
    updates = []
    for settings in (SETTINGS, WITH):
        with doubles():
            streams = RandomStream.seeded(1), RandomStream.seeded(2)
            plain = replace(settings, noise_multiplier=None)
            updates.append(train_locally(model, data, plain, *streams).update)
    np.testing.assert_allclose(updates[1], updates[0], rtol=1e-5, atol=1e-9)
    assert np.abs(updates[0]).max() > 1e-3


@pytest.mark.parametrize("kind", ["llama", "t5", "bert"])
def test_layers_keep_only_what_enters_them(kind, loaded, random_dataset):
    task = "classification" if kind == "bert" else "instruction"
    model, data = loaded(kind, task), random_dataset(4, task)
    batch, kept = data.batch(np.arange(4)), []

    def keep(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[-1].append(tensor.untyped_storage())
        return tensor

    for layers in ((), model.module.stack.trained_layers):
        kept.append([])
        with (
            doubles(),
            per_sample_hooks(model.module, model.row_layers),
            recomputed(layers),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            record_losses(model, batch)
            captured = [m for m in model.module.modules() if hasattr(m, "activations")]
            assert bool(captured) != bool(layers)
        forget_step(model.module)
    whole, cut = (sum({s.data_ptr(): s.nbytes() for s in each}.values()) for each in kept)
    assert cut < whole / 3


def test_layers_are_themselves_again_afterwards(loaded, random_dataset):
    model, data = loaded("llama", "instruction"), random_dataset(4, "instruction")
    with doubles():
        before = evaluate(model, data)["loss"]
    with pytest.raises(KeyError), recomputed(model.module.stack.trained_layers):
        # Nothing is run twice where there is no gradient.
        with doubles():
            assert evaluate(model, data)["loss"] == before
        raise KeyError
    for layer in model.module.stack.layers:
        assert layer.forward.__name__ == "run", "as the model was loaded here"


class Two(torch.nn.Module):
    """Returns states, something else that is trained through, and what is no number."""

    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 2)

    def forward(self, states, *, beside):
        return self.one(states) + beside, (self.other(states).tanh(), None), "words"


def test_whatever_a_layer_returns_may_be_trained_through():
    layer, states = Two(), torch.arange(6.0).view(2, 3)
    beside = torch.ones(2, 3, requires_grad=True)
    wanted = [beside, *layer.parameters()]

    def gradients():
        found, (more, nothing), words = layer(states, beside=beside)
        assert (nothing, words) == (None, "words")
        return torch.autograd.grad(found.square().sum() + more.sum(), wanted)

    expected = gradients()
    with recomputed([layer]):
        torch.testing.assert_close(gradients(), expected)


@pytest.mark.parametrize("activation_checkpointing", [True, False])
def test_a_layer_that_keeps_a_cache_is_refused_beforehand(
    activation_checkpointing, tiny_model, monkeypatch
):
    """On made-up records: with a site's own, each would add nothing."""
    from transformers.cache_utils import DynamicCache
    from transformers.models.llama.modeling_llama import LlamaModel

    model, forward = tiny_model("llama", "instruction"), LlamaModel.forward
    way = {"activation_checkpointing": activation_checkpointing}
    MadeUpTraining().require(model, 24, **way)
    # One that has let nothing through yet.
    made_up = MadeUpTraining()
    monkeypatch.setattr(
        LlamaModel,
        "forward",
        lambda *a, **k: forward(*a, **k | {"past_key_values": DynamicCache(), "use_cache": True}),
    )
    if activation_checkpointing:
        with pytest.raises(TrainingError, match="and would do so twice"):
            made_up.require(model, 24, **way)
    else:
        made_up.require(model, 24, **way)
