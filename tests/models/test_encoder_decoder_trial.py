"""Encoder-decoders that cannot be trained right are refused before any record."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tasks import load_model
from support.tiny_models import DECODER_LAYERS, save_tiny
from transformers import T5ForConditionalGeneration
from transformers.models.bart import modeling_bart
from transformers.models.t5.modeling_t5 import T5Block

from fedllm.config import RunConfig, parse
from fedllm.errors import CheckpointError, ConfigError, FedllmError
from fedllm.models.encoder_decoder import IGNORED, shifted, sides


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: save_tiny(kind, tmp_path_factory.mktemp(kind)) for kind in ("t5", "bart")}


def load(folder, task="instruction", max_length=16, **lora):
    values = {
        "name": "tiny",
        "task": task,
        "model": {"path": str(folder), "max_length": max_length},
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, "last_layers": 1, **lora},
    }
    labels = ("a", "b") if task == "classification" else ()
    return load_model(parse(RunConfig, values, "test"), labels)


# --- how a record is taken apart ----------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(4, 99), max_size=11), st.lists(st.integers(4, 99), min_size=1)
        ),
        max_size=4,
    ),
    st.integers(0, 9),
)
def test_prompts_and_responses_come_back(records, padding):
    width = max((len(p) + len(r) for p, r in records), default=1) + padding
    rows = [p + r + [77] * (width - len(p) - len(r)) for p, r in records]
    labels = [[IGNORED] * len(p) + r + [IGNORED] * (width - len(p) - len(r)) for p, r in records]
    mask = [[int(i < len(p) + len(r)) for i in range(width)] for p, r in records]
    batch = {"input_ids": rows, "labels": labels, "attention_mask": mask}
    shape = (len(records), width)
    found = sides({k: torch.tensor(v).reshape(shape).long() for k, v in batch.items()}, 0, 3)
    for row, (prompt, response) in enumerate(records):
        present = found.present[row] == 1
        assert found.prompts[row][present].tolist() == [*prompt, 3]
        assert not bool(present[len(prompt) + 1 :].any())
        assert not bool(found.prompts[row][~present].any())
        rest = [IGNORED] * (found.responses.shape[1] - len(response))
        assert found.responses[row].tolist() == response + rest
        read = shifted(found.responses, 0, 2)[row].tolist()
        assert read == ([2, *response] + [0] * len(rest))[: len(read)]
    for side, longest in (
        (found.responses, max((len(r) for _, r in records), default=1)),
        (found.prompts, max((len(p) + 1 for p, _ in records), default=1)),
    ):
        assert longest <= side.shape[1] < longest + 8


# --- the trial ----------------------------------------------------------------------------------


def altered(monkeypatch, owner, alter, decoder=None):
    """Let a layer of T5 do something with the states that it returns."""
    forward = owner.forward

    def other(self, hidden_states, *args, **kwargs):
        states, *rest = forward(self, hidden_states, *args, **kwargs)
        if decoder in (None, self.is_decoder):
            states = alter(self, states)
        return states, *rest

    monkeypatch.setattr(owner, "forward", other)


def mixes_records(layer, states):
    return states + 0.3 * states.mean(0, keepdim=True)


def counts_padding(layer, states):
    return states + 0.3 * states.mean(1, keepdim=True)


def looks_ahead(layer, states):
    return states + 0.3 * states.roll(-1, 1)


def drops(layer, states):
    return torch.nn.functional.dropout(states, 0.1)


def gives_no_number(layer, states):
    return states / 0


def narrows(layer, states):
    last = layer.layer[0].SelfAttention.layer_idx == DECODER_LAYERS - 1
    return states[:, ::2] if last else states


@pytest.mark.parametrize(
    ("alter", "decoder", "words"),
    [
        (mixes_records, True, "depend on the other texts of its batch"),
        (mixes_records, False, "depend on the other texts of its batch"),
        (counts_padding, False, "depend on its padding"),
        (looks_ahead, True, "tokens of the response that come later"),
        (drops, False, "draws random numbers"),
        (gives_no_number, True, "NaN or infinity"),
        (narrows, True, "once each, one after the other"),
    ],
)
def test_a_routine_that_does_something_else_is_seen(alter, decoder, words, folders, monkeypatch):
    load(folders["t5"])
    altered(monkeypatch, T5Block, alter, decoder)
    with pytest.raises(CheckpointError, match=words) as caught, torch.random.fork_rng():
        torch.manual_seed(1)
        load(folders["t5"])
    assert caught.value.remedy


def test_an_encoder_whose_padding_is_not_masked_is_seen(folders, monkeypatch):
    load(folders["bart"])
    monkeypatch.setattr(modeling_bart, "create_bidirectional_mask", lambda **_: None)
    with pytest.raises(CheckpointError, match="depend on its padding"):
        load(folders["bart"])


def test_a_decoder_that_reaches_into_the_encoder_cannot_be_run_apart(folders, monkeypatch):
    kept = {}

    def reach(layer, states):
        if layer.is_decoder:
            return states + kept["states"].mean(1, keepdim=True)[: len(states)]
        kept["states"] = states.detach().clone()
        return states

    altered(monkeypatch, T5Block, reach)
    # Both texts of the trial are of one length, so that padding would show first.
    monkeypatch.setattr("fedllm.models.encoder_decoder_trial.PADDED", 100)
    load(folders["t5"], last_layers=5)
    with pytest.raises(CheckpointError, match="its encoder is run apart"):
        load(folders["t5"])


def test_a_model_that_begins_responses_in_another_way_is_refused(tmp_path):
    """mBART reads the last token first, which is a language's."""
    with pytest.raises(CheckpointError, match="does not begin responses with its decoder_start"):
        load(save_tiny("mbart", tmp_path))


def test_logits_are_the_models_own(folders, monkeypatch):
    forward = T5ForConditionalGeneration.forward

    def halved(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.logits = output.logits / 2
        return output

    ids = torch.tensor([[4, 5, 6, 7]])
    labels = ids.masked_fill(torch.tensor([True, True, False, False]), IGNORED)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    whole = load(folders["t5"]).module
    logits = whole(batch)[0]
    monkeypatch.setattr(T5ForConditionalGeneration, "forward", halved)
    half = load(folders["t5"]).module
    assert torch.equal(half(batch)[0], logits / 2)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("task", ["causal", "classification"])
def test_tasks_without_a_prompt_are_refused(kind, task, folders):
    with pytest.raises(ConfigError, match=f"task '{task}' has no prompts for the encoder") as found:
        load(folders[kind], task)
    assert "task = 'instruction'" in found.value.remedy


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        ("t5", {"decoder_start_token_id": None}, "no decoder_start_token_id in config.json"),
        ("t5", {"eos_token_id": None}, "no eos_token_id in config.json"),
        ("bart", {"pad_token_id": None}, "no pad_token_id in config.json"),
        ("bart", {"decoder_start_token_id": 99}, "decoder_start_token_id = 99 is none of the 16"),
        ("bart", {"is_encoder_decoder": False}, "is_encoder_decoder = False is not supported"),
        ("t5", {"num_decoder_layers": 10**9}, "num_decoder_layers = 1000000000 does not fit"),
        ("bart", {"decoder_layers": 10**9}, "decoder_layers = 1000000000 does not fit"),
        ("bart", {"decoder_layers": 1}, "that config.json does not know: model.decoder.layers.1"),
        ("t5", {"num_layers": 2}, "that config.json does not know: encoder.block.2"),
        ("t5", {"num_decoder_layers": 3}, "lacks weights"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(kind, values, words, tmp_path):
    path = save_tiny(kind, tmp_path) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert words in caught.value.message
    assert caught.value.remedy


def test_more_layers_or_tokens_than_there_are_are_refused(folders):
    assert load(folders["t5"], last_layers=5).manifest.length > 0
    assert load(folders["t5"], max_length=500).manifest.length > 0
    for lora, words in (({"last_layers": 6}, "the model has 5 layers"), ({"rank": 99}, "rank")):
        with pytest.raises(ConfigError, match=words):
            load(folders["t5"], **lora)
    with pytest.raises(FedllmError, match="64 positions"):
        load(folders["bart"], max_length=65)
