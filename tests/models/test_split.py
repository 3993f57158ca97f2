"""The frozen part and the trained part, run apart, are the model's own forward pass."""

import json
import shutil

import pytest
import torch
from support.tasks import load_model
from transformers import AutoModel, AutoModelForCausalLM

from fedllm.config import RunConfig, parse

LAYERS = 3
FULL, NEAR = "full_attention", "sliding_attention"
VARIANTS = [
    ("bert", {}),
    ("roberta", {}),
    ("gpt2", {}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("llama", {}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}}),
    ("mistral", {"sliding_window": 3}),
    ("qwen2", {}),
    *(
        ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "layer_types": kinds})
        for kinds in (
            [FULL, FULL, NEAR],
            [NEAR, FULL, FULL],
            [FULL, NEAR, FULL],
            [NEAR, FULL, NEAR],
        )
    ),
]


def changed(source, folder, values):
    shutil.copytree(source, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | values))
    return folder


def shared(folder, task, last_layers, **lora):
    values = {
        "name": "tiny",
        "task": task,
        "model": {
            "path": str(folder),
            "max_length": 24,
            "feature_scale": 0.0,
            "head_start": "zero",
            "feature_center": "zero",
        },
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, "last_layers": last_layers, **lora},
    }
    return load_model(parse(RunConfig, values, "test"), ("one", "two"))


@pytest.fixture
def batch():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        ids = torch.randint(4, 16, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 11:], ids[1, 11:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


@pytest.mark.parametrize("last_layers", [1, 2, LAYERS])
@pytest.mark.parametrize(("kind", "values"), VARIANTS)
def test_parts_run_apart_are_the_whole_model(
    kind, values, last_layers, tiny_checkpoint, tmp_path, batch
):
    folder = changed(tiny_checkpoint(kind), tmp_path / "model", values)
    encoder = kind in ("bert", "roberta")
    auto = AutoModel if encoder else AutoModelForCausalLM
    whole = auto.from_pretrained(folder, dtype=torch.float64).eval()
    model = shared(folder, "classification" if encoder else "causal", last_layers)
    model.module.double()
    states = model.module.prefix(batch)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():
        theirs = whole(input_ids=ids, attention_mask=mask)
        if encoder:
            ours = model.module.stack.last_states({**batch, "states": states})[mask == 1]
            expected = theirs.last_hidden_state[mask == 1]
        else:
            ours = model.module({**batch, "states": states})[0]
            expected = theirs.logits[:, :-1][batch["labels"][:, 1:] != -100]
    torch.testing.assert_close(ours, expected.to(ours.dtype), atol=2e-5, rtol=1e-4)
    # A window or a scale that is not seen would make the comparison idle.
    if values and kind != "mistral":
        plain = auto.from_pretrained(tiny_checkpoint(kind), dtype=torch.float64).eval()
        with torch.no_grad():
            other = plain(input_ids=ids, attention_mask=mask).logits
        assert (other - theirs.logits)[mask == 1].abs().max() > 1e-2


def test_no_layer_stays_skipped_after_an_error(tiny_model, batch, monkeypatch):
    model = tiny_model("llama", "causal")
    batch = {name: value[:, :12] for name, value in batch.items()}
    before = model.module(batch)[0]
    kept = {**batch, "states": model.module.prefix(batch)[:, :3]}
    with pytest.raises(RuntimeError):
        model.module(kept)
    torch.testing.assert_close(model.module(batch)[0], before)
