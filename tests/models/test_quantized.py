"""A base that is held as integers is the base with rounded weights, and no other."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.doubles import doubles
from support.federation import LABELS, records, small_config, write_jsonl
from support.one_by_one import adds_up, same
from support.tasks import load_model
from support.tiny_models import ALL, DECODERS, ENCODER_DECODERS, save_tiny
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedllm.errors import CheckpointError, ConfigError
from fedllm.models.contents import fingerprints, held_as
from fedllm.models.core import basis
from fedllm.models.quantized import QuantizedLinear, pack, quantize_layers, unpack
from fedllm.models.start import take_over
from fedllm.randomness import RandomStream
from fedllm.training.made_up import MadeUpTraining
from fedllm.training.memory_of_run import memory_of
from fedllm.training.objectives import record_losses
from fedllm_server.simulation import simulate

BITS = {"int8": 8, "int4": 4}
every_width = pytest.mark.parametrize("held", BITS)
CASES = [
    *((kind, "classification") for kind in ALL if kind not in DECODERS),
    *((kind, "instruction") for kind in (*DECODERS, *ENCODER_DECODERS)),
]
# Grouped queries, Conv1D with its weights the other way round, an encoder, and two stacks.
QUICK = ("llama", "gpt2", "bert", "t5")
METHODS = ("lora", "ffa", "ffa_orthonormal", "rolora", "fedsvd", "core")


def rounded(weights, bits):
    """Round the rows of a matrix, by the rule and without the program."""
    found = np.zeros(weights.shape, dtype=np.float32)
    size = weights.shape[1] if bits == 8 else 32
    for row, values in enumerate(weights.float().numpy()):
        for start in range(0, len(values), size):
            group = values[start : start + size]
            largest = max(group, key=lambda value: (abs(value), value))
            exact = torch.tensor(largest / np.float32(-(2 ** (bits - 1))))
            scale = exact.bfloat16().float().numpy()
            steps = np.clip(np.rint(group / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            found[row, start : start + size] = steps * scale
    return torch.from_numpy(found)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return cache(lambda kind: save_tiny(kind, tmp_path_factory.mktemp(kind)))


def run(folder, task="classification", held="none", **lora):
    values = {"path": str(folder), "max_length": 16, "quantization": held}
    return small_config(folder, task=task, model=values, lora={"rank": 2, **lora})


def model_of(folder, task="classification", held="none", **lora):
    labels = LABELS if task == "classification" else ()
    return load_model(run(folder, task, held, **lora), labels)


def trained(model):
    """Move what a model trains, and let it compute in float64."""
    drawn = RandomStream.seeded(3, "quantized").normal(model.manifest.length)
    model.set_adapter(model.adapter() + 0.3 * drawn)
    model.module.double()
    return model


def twin_of(model, folder, task, held, **lora):
    """Make the same model of plain layers, with rounded weights."""
    twin = model_of(folder, task, **lora)
    for layer in twin.module.stack.layers:
        for name, part in layer.named_modules():
            if ".lora_" in name or type(part) not in (nn.Linear, Conv1D):
                continue
            turned = isinstance(part, Conv1D)
            weights = part.weight.detach()
            found = rounded(weights.T if turned else weights, BITS[held])
            part.weight.data = found.T if turned else found
    twin.module.double()
    twin.put(twin.tensors, model.values(model.tensors))
    return twin


def gradient_alone(model, data, index):
    losses = record_losses(model, data.batch(np.array([index])))
    parts = torch.autograd.grad(losses[0], model.trained)
    return torch.cat([part.reshape(-1) for part in parts])


def is_the_twin(folder, task, held, random_dataset, **lora):
    """See that losses and private steps are those of rounded weights in plain layers."""
    units = [0, 1, 1, 1, 2]
    data = random_dataset(5, task, persons=units)
    model = trained(model_of(folder, task, held, **lora))
    twin = twin_of(model, folder, task, held, **lora)
    with doubles(), torch.no_grad():
        batch = data.batch(np.arange(5))
        same(record_losses(model, batch), record_losses(twin, batch))
    adds_up(model, data, units, lambda index: gradient_alone(twin, data, index))


@pytest.mark.parametrize(
    ("kind", "task"),
    [pytest.param(*case, marks=[] if case[0] in QUICK else [pytest.mark.slow]) for case in CASES],
)
@every_width
def test_it_is_the_model_with_rounded_weights(kind, task, held, base, random_dataset):
    """In what it answers, and in each unit's gradient, from kept states too."""
    is_the_twin(base(kind), task, held, random_dataset, last_layers=2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_adapts_layers_trains_on_it(method, base, random_dataset):
    is_the_twin(base("llama"), "instruction", "int4", random_dataset, method=method)
    MadeUpTraining().require(model_of(base("llama"), "instruction", "int4", method=method), 16)


def test_a_core_stands_on_the_rounded_weights(base):
    model = model_of(base("llama"), "instruction", "int4", method="core", last_layers=1)
    plain = model_of(base("llama"), "instruction")
    names = [
        n for n, _ in model.module.named_parameters() if n.endswith("q_proj.lora_A.default.weight")
    ]
    layer = plain.module.get_submodule(names[0].partition(".lora_")[0]).base_layer
    weights = rounded(layer.weight.detach(), 4).double()
    expected, _ = basis(weights, 2, RandomStream.seeded(0, "unused"))
    found = model.module.get_parameter(names[0])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@every_width
@pytest.mark.parametrize("shape", [(5, 64), (3, 40), (4, 7), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_rounded_by_the_rule(shape, dtype, held):
    plain = nn.Linear(shape[1], shape[0], dtype=dtype)
    layer = QuantizedLinear(plain, BITS[held])
    expected = rounded(plain.weight.detach(), BITS[held])
    assert layer.weight.dtype == dtype
    torch.testing.assert_close(layer.weight, expected.to(dtype), rtol=0, atol=0)
    assert (layer.out_features, layer.in_features) == shape


def test_of_four_bits_each_is_used_and_the_largest_is_kept():
    plain = nn.Linear(4, 3, bias=False)
    values = [[-0.5, 0.1875, 0.02, 0.4375], [0.5, -0.4375, 0.0625, 0.5], [0.0, 0.0, 0.0, 0.0]]
    plain.weight.data = torch.tensor(values)
    values[0][2] = 0.0
    # The largest of its sign: 0.5 is as far as the scale reaches, and is -8 times it.
    assert QuantizedLinear(plain, 4).weight.tolist() == values


def test_all_pairs_of_four_bits_are_packed_and_unpacked():
    low, high = torch.meshgrid(torch.arange(-8, 8), torch.arange(-8, 8), indexing="ij")
    codes = torch.stack([low.flatten(), high.flatten()], dim=-1).to(torch.int8)
    assert pack(codes).numel() == 256
    assert len(set(pack(codes).flatten().tolist())) == 256
    assert torch.equal(unpack(pack(codes)), codes)


@every_width
@pytest.mark.parametrize("turned", [False, True])
def test_a_layer_multiplies_and_keeps_no_weights(held, turned):
    plain = Conv1D(40, 64) if turned else nn.Linear(64, 40)
    nn.init.normal_(plain.bias)
    layer = QuantizedLinear(plain, BITS[held]).double()
    weights = layer.weight
    states = torch.randn(2, 3, 64, dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = layer(states)
    slopes = torch.randn(2, 3, 40, dtype=torch.float64)
    (slope,) = torch.autograd.grad(found, states, slopes)
    expected = states.detach() @ weights.T + plain.bias.detach().double()
    torch.testing.assert_close(found.detach(), expected)
    torch.testing.assert_close(slope, slopes @ weights)
    assert all(tensor.numel() < weights.numel() for tensor in kept)
    assert not any(
        parameter.requires_grad for parameter in layer.parameters() if parameter.dim() > 1
    )


@every_width
def test_it_takes_a_byte_a_weight_or_about_half(held):
    plain = nn.Linear(256, 64, bias=False, dtype=torch.bfloat16)
    taken = sum(p.nbytes for p in QuantizedLinear(plain, BITS[held]).parameters())
    scales = 64 * 2 if held == "int8" else 64 * 256 // 32 * 2
    assert taken == 64 * 256 * BITS[held] // 8 + scales


@every_width
def test_parameters_are_counted_as_those_of_the_model(held, base):
    plain, model = model_of(base("gpt2")), model_of(base("gpt2"), held=held)
    assert model.number_of_parameters == plain.number_of_parameters
    assert model.manifest == plain.manifest


def test_the_memory_estimate_counts_what_is_held(base):
    folder = base("llama")
    estimated = memory_of(run(folder, "instruction", "int4"), folder)
    module = model_of(folder, "instruction", "int4").module
    tensors = {id(t): t.nbytes for t in (*module.parameters(), *module.buffers())}
    assert estimated.weights == sum(tensors.values())


def test_its_identity_covers_how_it_is_held(base, tmp_path):
    folder = base("llama")
    models = {held: model_of(folder, held=held) for held in ("none", *BITS)}
    prints = {model.fingerprint for model in models.values()}
    assert len(prints) == 3
    assert {model.files_fingerprint for model in models.values()} == {models["none"].fingerprint}
    assert models["int8"].earlier_fingerprint == ""
    for held, model in models.items():
        model.save_adapter(tmp_path / held)
        model.load_adapter(tmp_path / held)
    for there, here in (("none", "int8"), ("int8", "none"), ("int8", "int4")):
        with pytest.raises(CheckpointError, match="base_fingerprint differs"):
            models[here].load_adapter(tmp_path / there)
        with pytest.raises(ConfigError, match=r"model\.quantization"):
            take_over(models[here], tmp_path / there)


def test_its_identity_covers_the_numbers_that_were_rounded(base):
    """Rounded from bfloat16, the integers are other ones; unrounded, files say it all."""
    folder = base("llama")
    for held in ("none", *BITS):
        prints = {held_as("a" * 64, held, precision) for precision in ("float32", "bfloat16")}
        assert len(prints) == (1 if held == "none" else 2)
    assert model_of(folder, held="int8").fingerprint in {
        held_as(fingerprints(folder).current, "int8", precision)
        for precision in ("float32", "bfloat16")
    }


@pytest.mark.parametrize("lora", [{"method": "bitfit"}, {"method": "layers", "last_layers": 1}])
def test_what_trains_the_base_itself_is_refused(lora, base):
    with pytest.raises(ConfigError, match=r"model\.quantization = 'int4' rounds them"):
        run(base("bert"), held="int4", **lora)


def test_a_model_without_plain_linear_layers_is_refused():
    class Own(nn.Linear):
        pass

    model = nn.Module()
    model.layers = nn.ModuleList([Own(4, 4), Own(4, 4)])
    model.config = SimpleNamespace(model_type="own")
    object.__setattr__(model, "base_model", model)
    with pytest.raises(ConfigError, match="'own' models have no plain linear layers"):
        quantize_layers(model, ("layers",), "int4")
    assert type(model.layers[0]) is Own


@pytest.mark.slow
def test_a_run_on_it_goes_from_end_to_end(base, tmp_path):
    """Sites and coordinator with one base of integers; its adapter goes on in another run."""
    files = {"train": str(write_jsonl(tmp_path / "train.jsonl", records(60)))}
    files["test"] = str(write_jsonl(tmp_path / "test.jsonl", records(12, seed=1)))
    config = run(base("bert"), held="int4", last_layers=1)
    config = config.model_copy(update={"data": config.data.model_copy(update=files)})
    summary = simulate(config, tmp_path / "out")
    model = model_of(base("bert"), held="int4", last_layers=1)
    model.load_adapter(tmp_path / "out" / "adapter")
    assert summary.model["quantization"] == "int4"
    assert summary.model["fingerprint"] == model.files_fingerprint
