"""Runs that train biases and norms, or whole layers, of the base itself."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.federation import LABELS, records, small_config, write_jsonl
from support.one_by_one import adds_up
from support.tasks import load_model
from support.tiny_models import ALL, DECODERS, ENCODER_DECODERS, LAYERS, save_tiny
from transformers import AutoModel

from fedllm.errors import CheckpointError, ConfigError, TrainingError
from fedllm.models.start import take_over
from fedllm.randomness import RandomStream
from fedllm.training.local import gradients_of, watched
from fedllm.training.made_up import MadeUpTraining
from fedllm.training.objectives import record_losses
from fedllm_server.simulation import simulate

BITFIT, LAYER = {"method": "bitfit"}, {"method": "layers", "last_layers": 1}
every_way = pytest.mark.parametrize("lora", [BITFIT, LAYER], ids=["bitfit", "layers"])
# Each type of model in each way, by one task or the other.
CASES = [
    *((kind, "classification", LAYER) for kind in ALL),
    *((kind, "classification", BITFIT) for kind in ALL if kind not in DECODERS),
    *((kind, "instruction", BITFIT) for kind in DECODERS),
    *((kind, "instruction", lora) for kind in ENCODER_DECODERS for lora in (BITFIT, LAYER)),
]


def moved(model, size=0.05):
    """Move what is trained a little, so that a norm stays a norm."""
    drawn = RandomStream.seeded(5, "own tensors").normal(model.manifest.length)
    model.set_adapter(model.adapter() + size * drawn)
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = save_tiny(kind, tmp_path_factory.mktemp(kind))
        return made[kind]

    return of


def model_of(base, kind, task, lora):
    labels = LABELS if task == "classification" else ()
    values = {"model": {"path": str(base(kind)), "max_length": 16}, "task": task, "lora": lora}
    return load_model(small_config(base(kind), **values), labels)


@pytest.mark.parametrize(("kind", "task", "lora"), CASES, ids=str)
def test_a_private_step_is_the_sum_of_single_records(kind, task, lora, base, random_dataset):
    model = moved(model_of(base, kind, task, lora))
    MadeUpTraining().require(model, 16)
    persons = [0, 1, 1, 2, 0]
    data = random_dataset(5, task, persons=persons)
    model.module.double()

    def alone(index):
        losses = record_losses(model, data.batch(np.array([index])))
        parts = torch.autograd.grad(losses[0], model.trained, materialize_grads=True)
        return torch.cat([part.reshape(-1) for part in parts])

    adds_up(model, data, persons, alone)


@pytest.mark.parametrize(
    ("kind", "lora", "expected"),
    [
        ("bert", {**BITFIT, "last_layers": 1}, ("query.bias", "value.bias", "LayerNorm.weight")),
        ("llama", BITFIT, ("input_layernorm.weight", "post_attention_layernorm.weight")),
        ("bert", LAYER, ("query.weight", "key.weight", "intermediate.dense.weight")),
    ],
    ids=str,
)
def test_what_is_trained(kind, lora, expected, base):
    model = model_of(base, kind, "classification", lora)
    own = model.own_tensors
    assert model.adapts_layers
    assert all(any(name.endswith(wanted) for name in own) for wanted in expected)
    assert not any(name.endswith(("key.bias", "k_proj.bias")) for name in own)
    lowest = LAYERS - lora.get("last_layers", LAYERS)
    assert {int(next(p for p in n.split(".") if p.isdigit())) for n in own} == set(
        range(lowest, LAYERS)
    )
    dims = {parameter.dim() for parameter in own.values()}
    assert dims == ({1} if lora["method"] == "bitfit" else {1, 2})
    assert {s.kind for s in model.manifest.segments} == {"base", "head"}
    trained = {n for n, p in model.module.named_parameters() if p.requires_grad}
    assert trained == {s.name for s in model.manifest.segments}


def test_a_bias_that_keys_share_with_queries_and_values_is_trained_whole(base, random_dataset):
    """As docs/adapters.md says: the key's third has no gradient, and gets noise all the same."""
    model = moved(model_of(base, "gpt2", "instruction", BITFIT))
    losses = record_losses(model, random_dataset(2, "instruction").batch(np.array([0])))
    names = [segment.name for segment in model.manifest.segments]
    parts = torch.autograd.grad(losses[0], model.trained, materialize_grads=True)
    shared = [part for name, part in zip(names, parts, strict=True) if "c_attn.bias" in name]
    assert len(shared) == LAYERS
    for query, key, value in (part.chunk(3) for part in shared):
        assert key.norm() < 1e-4 * min(query.norm(), value.norm())


@every_way
def test_a_saved_model_is_what_transformers_loads(lora, base, tmp_path, random_dataset):
    model = moved(model_of(base, "bert", "classification", lora))
    model.save_adapter(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()
    plain = AutoModel.from_pretrained(base("bert"))
    tensors = load_file(tmp_path / "adapter" / "base_tensors.safetensors")
    assert not plain.load_state_dict(tensors, strict=False).unexpected_keys
    batch = random_dataset(3, "classification").batch(np.arange(3))
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = plain.eval()(**inputs).last_hidden_state
        torch.testing.assert_close(model.module.before_loss(batch), expected)
    again = model_of(base, "bert", "classification", lora)
    assert not np.array_equal(again.adapter(), model.adapter())
    again.load_adapter(tmp_path / "adapter")
    assert np.array_equal(again.adapter(), model.adapter())
    with pytest.raises(CheckpointError, match="manifest differs"):
        model_of(base, "bert", "classification", {"rank": 2}).load_adapter(tmp_path / "adapter")


@every_way
@pytest.mark.parametrize("privacy", [{}, {"epsilon": 4.0}], ids=["plain", "private"])
def test_a_run_learns_and_goes_on_in_another(lora, privacy, base, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", records(60))
    test = write_jsonl(tmp_path / "test.jsonl", records(12, seed=9))

    def run(name, **sections):
        config = small_config(
            base("bert"),
            lora={**lora, **sections.pop("lora", {})},
            data={"train": str(train), "test": str(test), "labels": None},
            privacy=privacy,
            rounds={"count": 2, "rollback_rise": 0.0},
            **sections,
        )
        return config, simulate(config, tmp_path / name, observers=[])

    config, summary = run("first")
    assert summary.model["method"] == lora["method"]
    first, done = (load_model(config, tuple(sorted(LABELS))) for _ in range(2))
    done.load_adapter(tmp_path / "first" / "adapter")
    for segment in first.manifest.segments:
        assert not np.array_equal(first.adapter()[segment.slice], done.adapter()[segment.slice])
    start = {"path": str(base("bert")), "start": str(tmp_path / "first")}
    _, later = run("later", model=start)
    assert later.started_from is not None
    begun = load_model(config, tuple(sorted(LABELS)))
    assert take_over(begun, tmp_path / "first" / "adapter")
    assert np.array_equal(begun.adapter(), done.adapter())


def test_what_another_run_did_not_train_is_no_start(base, tmp_path):
    model_of(base, "bert", "classification", BITFIT).save_adapter(tmp_path / "own")
    model_of(base, "bert", "classification", {"rank": 2}).save_adapter(tmp_path / "lora")
    with pytest.raises(ConfigError, match="trained adapters, and this run trains tensors of"):
        take_over(model_of(base, "bert", "classification", BITFIT), tmp_path / "lora")
    with pytest.raises(ConfigError, match="it trained tensors of the base itself, and this run"):
        take_over(model_of(base, "bert", "classification", {"rank": 2}), tmp_path / "own")
    with pytest.raises(ConfigError, match="the adapted layers: "):
        take_over(model_of(base, "bert", "classification", LAYER), tmp_path / "own")


@pytest.mark.parametrize(
    ("lora", "model", "match"),
    [
        ({"method": "layers"}, {}, "set last_layers to how many"),
        ({**BITFIT, "target_modules": ["query"]}, {}, "gives them none: leave it out"),
        (BITFIT, {"precision": "bfloat16"}, "needs them in float32"),
        ({**BITFIT, "rank": 0}, {}, "rank = 0 trains the head alone"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(lora, model, match, base):
    with pytest.raises(ConfigError, match=match):
        small_config(base("bert"), lora=lora, model={"path": str(base("bert")), **model})


def test_too_many_layers_are_refused(base):
    with pytest.raises(ConfigError, match="the model has 3 layers"):
        model_of(base, "bert", "classification", {"method": "layers", "last_layers": 9})


def test_a_tensor_without_a_gradient_is_told(base):
    model = model_of(base, "bert", "classification", BITFIT)
    model.module.head.weight.data.fill_(0.1)
    query = next(p for name, p in model.own_tensors.items() if name.endswith("query.bias"))
    query.register_hook(torch.zeros_like)
    with pytest.raises(TrainingError, match=r"did not reach .*query\.bias"):
        MadeUpTraining().require(model, 16)


@every_way
def test_checkpointing_gives_the_same_gradients(lora, base, random_dataset):
    model = moved(model_of(base, "bert", "classification", lora))
    data = random_dataset(3)
    losses = partial(record_losses, model, data.batch(np.arange(3)))
    found = []
    for checkpointing in (False, True):
        with watched(model, checkpointing):
            found.append(gradients_of(model)(model.trained, losses))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
        assert one.any()
