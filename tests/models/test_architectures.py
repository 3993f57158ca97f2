"""Each architecture is run, cut, trained and saved as the model that transformers and peft know."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.doubles import doubles
from support.one_by_one import adds_up, all_different, same, trained_somehow
from support.tasks import load_model
from support.tiny_models import ALL, DECODERS, ENCODER_DECODERS, ENCODERS, LAYERS, save_tiny
from transformers import AutoModel, AutoModelForCausalLM

from fedllm.config import RunConfig, parse
from fedllm.privacy.dpsgd import forget_step, per_sample_gradients, per_sample_hooks
from fedllm.training.objectives import record_losses

CASES = [(kind, "classification") for kind in ALL] + [(kind, "instruction") for kind in DECODERS]
every_case = pytest.mark.parametrize(("kind", "task"), CASES)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return cache(lambda kind: save_tiny(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module")
def shared(folder_of):
    """Load a model with a trained adapter, in float64; each once, which no test changes."""

    @cache
    def make(kind, task, first=1):
        values = {
            "name": "tiny",
            "task": task,
            "model": {
                "path": str(folder_of(kind)),
                "max_length": 16,
                "head_start": "zero",
                "feature_center": "zero",
            },
            "data": {"train": "unused.jsonl"},
            "lora": {"rank": 2, "last_layers": LAYERS - first},
        }
        labels = ("one", "two", "three") if task == "classification" else ()
        return trained_somehow(load_model(parse(RunConfig, values, "test"), labels), kind, task)

    return make


def gradient_alone(model, data, index):
    """Return one record's gradient, (P,), by plain backpropagation through the whole model."""
    losses = record_losses(model, data.batch(np.array([index])))
    assert len(losses) == 1
    parts = torch.autograd.grad(losses[0], model.trained)
    return torch.cat([part.reshape(-1) for part in parts])


@every_case
def test_gradients_are_those_of_a_loop_over_records(kind, task, shared, random_dataset):
    model, data = shared(kind, task), random_dataset(5, task)
    with doubles():
        expected = torch.stack([gradient_alone(model, data, index) for index in range(5)])
        batch = model.prefix.attach(data, np.arange(5), data.batch(np.arange(5)))
        with per_sample_hooks(model.module, model.row_layers):
            gradients = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
        rows = [g if torch.is_tensor(g) else _product(g) for g in gradients]
        found = torch.cat([row.reshape(5, -1) for row in rows], dim=1)
        forget_step(model.module)
        if ALL[kind].shared_input:
            same(found.sum(0), expected.sum(0))
        else:
            same(found, expected)
        all_different(expected)


def _product(factors):
    return torch.einsum("bo,bi->boi", factors.backprops, factors.activations)


@every_case
def test_a_private_step_adds_up_clipped_gradients_of_units(kind, task, shared, random_dataset):
    """As sites do it: by unit, each computed of its own records, from kept states."""
    units = [0, 1, 1, 1, 2]
    model, data = shared(kind, task), random_dataset(5, task, persons=units)
    adds_up(model, data, units, lambda index: gradient_alone(model, data, index))


def plain(folder, task):
    auto = AutoModel if task == "classification" else AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    # torch's product of grouped matrices, which sparse models use, knows no float64.
    model.config._experts_implementation = "eager"
    return model


def logits_of(model, batch):
    return model.module(batch) if model.labels else model.module(batch)[0]


def padded(model, data, whole):
    """Return what a plain model makes of a batch: logits, in the form of `logits_of`."""
    batch = data.batch(np.arange(len(data)))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        output = whole(input_ids=ids, attention_mask=mask)
        if not model.labels:
            return output.logits[:, :-1][batch["labels"][:, 1:] != -100]
        states = output.last_hidden_state
        if model.module.pooling == "last":
            pooled = states[torch.arange(len(states)), mask.sum(1) - 1]
        else:
            pooled = torch.stack([s[m == 1].mean(0) for s, m in zip(states, mask, strict=True)])
        features = model.module.feature_scale * torch.nn.functional.normalize(pooled, dim=-1)
        return model.module.head(features)


@pytest.mark.parametrize("first", [0, 1, LAYERS - 1])
@every_case
def test_cut_and_kept_it_is_the_model_that_peft_loads(
    kind, task, first, shared, folder_of, random_dataset, tmp_path
):
    """A saved adapter on transformers' own model answers as the cut model with kept states."""
    model, data = shared(kind, task, first), random_dataset(5, task)
    model.save_adapter(tmp_path / "adapter")
    base = plain(folder_of(kind), task)
    whole = PeftModel.from_pretrained(plain(folder_of(kind), task), tmp_path / "adapter").eval()
    with doubles():
        batch = model.prefix.attach(data, np.arange(5), data.batch(np.arange(5)))
        assert ("states" in batch) == (first > 0)
        untrained = padded(model, data, base.double())
        expected = padded(model, data, whole.double())
        with torch.no_grad():
            same(logits_of(model, batch), expected)
    assert float((expected - untrained).norm()) > 1e-3


@every_case
def test_an_answer_depends_on_no_other_record_and_on_no_padding(kind, task, shared, random_dataset):
    model, data = shared(kind, task), random_dataset(5, task)
    with doubles(), torch.no_grad():
        batches = [data.batch(np.array([index])) for index in range(5)]
        alone = torch.cat([logits_of(model, batch) for batch in batches])
        same(logits_of(model, data.batch(np.arange(5))), alone)
        # A batch of ours is padded to a multiple of 8; here to nothing.
        sizes = [int(batch["attention_mask"].sum()) for batch in batches]
        bare = [
            {key: value[:, :size] if value.dim() == 2 else value for key, value in batch.items()}
            for size, batch in zip(sizes, batches, strict=True)
        ]
        assert len(set(sizes)) > 1
        same(torch.cat([logits_of(model, batch) for batch in bare]), alone)


@pytest.mark.parametrize("kind", ALL)
def test_layers_and_projections_are_found(kind, shared):
    model = shared(kind, "classification", first=LAYERS - 1)
    adapted = [s.name.split(".lora_")[0] for s in model.manifest.segments if s.group == "lora"]
    inside = ALL[kind].layers
    assert all(f"backbone.{inside}.{LAYERS - 1}." in name for name in adapted)
    assert {name.rpartition(".")[2] for name in adapted} == set(ALL[kind].targets)
    assert model.module.pooling == ("mean" if kind in ENCODERS else "last")


def test_the_documentation_lists_what_is_tested_here():
    page = Path(__file__).resolve().parents[2] / "docs" / "models.md"
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in page.read_text().split("## Proven")[1].split("## ")[0].splitlines()
        if line.startswith("| `") and not line.startswith("| `model_type`")
    ]
    plain = [
        ("decoder" if kind in DECODERS else "encoder", kind, tiny, [tiny.layers])
        for kind, tiny in ALL.items()
    ]
    pairs = [
        ("encoder-decoder", kind, tiny, [tiny.layers.replace("de", "en", 1), tiny.layers])
        for kind, tiny in ENCODER_DECODERS.items()
        if kind != "t5-gated"
    ]
    assert rows == [
        (f"`{kind}`", what, _listed(layers), _listed(tiny.targets))
        for what, kind, tiny, layers in plain + pairs
    ]


def _listed(names):
    return ", ".join(f"`{name}`" for name in names)
