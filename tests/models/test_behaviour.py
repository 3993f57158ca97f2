"""A model whose code does something else than its structure says is refused before any record."""

import pytest
import torch
from support.tasks import load_model
from support.tiny_models import LAYERS, save_tiny
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

from fedllm.config import RunConfig, parse
from fedllm.errors import CheckpointError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_tiny(kind, tmp_path_factory.mktemp(kind)) for kind in ("bert", "llama")}


def load(folder, task="classification", last_layers=1):
    values = {
        "name": "tiny",
        "task": task,
        "model": {
            "path": str(folder),
            "max_length": 16,
            "head_start": "zero",
            "feature_center": "zero",
        },
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, "last_layers": last_layers},
    }
    return load_model(parse(RunConfig, values, "test"), ("a", "b") if task[1] == "l" else ())


def altered(monkeypatch, owner, alter):
    """Let a layer's routine do something with what it returns."""
    forward = owner.forward

    def other(self, hidden_states, *args, **kwargs):
        return alter(self, hidden_states, forward(self, hidden_states, *args, **kwargs))

    monkeypatch.setattr(owner, "forward", other)


def mixes_records(layer, given, states):
    return states + 0.1 * states.mean(0, keepdim=True)


def drops(layer, given, states):
    return torch.nn.functional.dropout(states, 0.1, training=layer.training)


def draws_now_and_then(layer, given, states):
    return states + (torch.rand([]) < 0.1) * torch.arange(states.shape[-1])


def counts_padding(layer, given, states):
    return states + 0.1 * states.mean(1, keepdim=True)


def looks_ahead(layer, given, states):
    return states + 0.1 * states.roll(-1, 1)


def breaks(layer, given, states):
    raise ValueError("no such kernel")


def gives_no_number(layer, given, states):
    return states / 0


def remembers(layer, given, states):
    before = getattr(layer, "kept", torch.zeros_like(states))
    layer.kept = states
    return states + (before if before.shape == states.shape else 0)


CALLS = [0]


def counts_its_calls(layer, given, states):
    CALLS[0] += 1
    return states + 0.1 * CALLS[0] * torch.arange(states.shape[-1])


def narrows(layer, given, states):
    return states[:, ::2]


@pytest.mark.parametrize(
    ("kind", "alter", "words"),
    [
        ("bert", mixes_records, "depend on the other texts of its batch"),
        ("llama", mixes_records, "depend on the other texts of its batch"),
        ("bert", drops, "draws random numbers"),
        ("llama", draws_now_and_then, "draws random numbers"),
        ("bert", counts_padding, "depend on its padding"),
        ("llama", looks_ahead, "tokens that come later"),
        ("bert", breaks, "no such kernel"),
        ("bert", gives_no_number, "NaN or infinity"),
        ("bert", narrows, "once each, one after the other"),
        ("llama", remembers, r"writes on itself while it runs \(layers.0.kept\)"),
        ("llama", counts_its_calls, "when it is run again"),
    ],
)
def test_a_routine_that_does_something_else_is_seen(kind, alter, words, folders, monkeypatch):
    load(folders[kind])
    altered(monkeypatch, {"bert": BertLayer, "llama": LlamaDecoderLayer}[kind], alter)
    with (
        pytest.raises(CheckpointError, match=words) as caught,
        torch.random.fork_rng(),
    ):
        torch.manual_seed(1)
        load(folders[kind])
    assert caught.value.remedy


def test_an_encoder_may_look_ahead(folders, monkeypatch):
    altered(monkeypatch, BertLayer, lambda layer, given, states: states + 0.1 * states.flip(2))
    load(folders["bert"])


@pytest.mark.parametrize("last_layers", [1, 2])
def test_a_layer_that_reaches_past_the_one_below_cannot_be_cut_off(
    last_layers, folders, monkeypatch
):
    kept = {}

    def reach(layer, given, states):
        place = layer.self_attn.layer_idx
        if place == 0:
            kept["first"] = states
        return states + kept["first"] if place == LAYERS - 1 else states

    altered(monkeypatch, LlamaDecoderLayer, reach)
    load(folders["llama"], last_layers=LAYERS)
    with pytest.raises(CheckpointError, match="frozen layers are run apart") as caught:
        load(folders["llama"], last_layers=last_layers)
    assert "leave lora.last_layers out" in caught.value.remedy


def test_layers_that_run_twice_or_in_another_order_are_refused(folders, monkeypatch):
    from transformers.models.bert.modeling_bert import BertEncoder

    forward = BertEncoder.forward

    def twice(self, hidden_states, *args, **kwargs):
        once = forward(self, hidden_states, *args, **kwargs).last_hidden_state
        return forward(self, once, *args, **kwargs)

    monkeypatch.setattr(BertEncoder, "forward", twice)
    with pytest.raises(CheckpointError, match="once each, one after the other"):
        load(folders["bert"])


def test_logits_are_the_models_own(folders, monkeypatch):
    """What a model does to logits after its head is not left out."""
    forward = LlamaForCausalLM.forward

    def halved(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits / 2
        return output

    ids = torch.tensor([[4, 5, 6]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    whole = load(folders["llama"], "causal").module
    logits = whole(batch)[0]
    monkeypatch.setattr(LlamaForCausalLM, "forward", halved)
    half = load(folders["llama"], "causal").module
    assert torch.equal(half(batch)[0], logits / 2)
