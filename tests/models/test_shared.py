import json
import shutil

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from support.tasks import load_model
from transformers import AutoModel, AutoModelForCausalLM

from fedllm.config import RunConfig, parse
from fedllm.errors import CheckpointError, ConfigError, TrainingError
from fedllm.models.manifest import AdapterManifest
from fedllm.training.objectives import record_losses


def config(path, task="classification", **lora):
    values = {
        "name": "tiny",
        "task": task,
        "model": {"path": str(path), "head_start": "zero", "feature_center": "zero"},
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, **lora},
    }
    return parse(RunConfig, values, "test")


@pytest.mark.parametrize(
    ("kind", "task", "targets"),
    [
        ("bert", "classification", {"query", "value"}),
        ("llama", "classification", {"q_proj", "v_proj"}),
        ("llama", "instruction", {"q_proj", "v_proj"}),
        ("gpt2", "causal", {"c_attn"}),
    ],
)
def test_auto_adapts_query_and_value_of_the_last_layers(kind, task, targets, tiny_model):
    model = tiny_model(kind, task, lora={"last_layers": 1})
    lora = [s for s in model.manifest.segments if s.group == "lora"]
    assert {s.name.split(".lora_")[0].rpartition(".")[2] for s in lora} == targets
    assert all(".2." in s.name for s in lora)
    assert [s.name for s in model.manifest.segments] == sorted(
        n for n, p in model.module.named_parameters() if p.requires_grad
    )
    assert all(p.dtype == torch.float32 for p in model.trained)


def test_a_new_adapter_changes_nothing_and_depends_on_the_seed_alone(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    model = load_model(config(folder, "causal"))
    torch.manual_seed(99)
    again = load_model(config(folder, "causal"))
    assert np.array_equal(model.adapter(), again.adapter())
    other = load_model(config(folder, "causal").model_copy(update={"seed": 1}))
    assert not np.array_equal(model.adapter(), other.adapter())
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    plain = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits[0, :-1]
    torch.testing.assert_close(model.module(batch)[0], plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "task"), [("bert", "classification"), ("gpt2", "causal")])
def test_bfloat16_is_for_the_frozen_base_alone(kind, task, tiny_model):
    exact, rough = (
        tiny_model(kind, task, model={"precision": precision})
        for precision in ("float32", "bfloat16")
    )
    for name, parameter in rough.module.named_parameters():
        trained = parameter.requires_grad
        assert parameter.dtype == (torch.float32 if trained else torch.bfloat16), name
    assert np.array_equal(exact.adapter(), rough.adapter())
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    labels = torch.tensor([1]) if task == "classification" else ids
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    losses = [record_losses(model, batch) for model in (exact, rough)]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.1, atol=0.1)
    for model, loss in zip((exact, rough), losses, strict=True):
        model.gradient = torch.autograd.grad(loss.sum(), model.trained)
    for one, other in zip(exact.gradient, rough.gradient, strict=True):
        assert other.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.9


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_head_can_start_at_the_names_of_the_labels(kind, tiny_checkpoint):
    labels = ("send_card", "my cash", "loan")
    settings = config(tiny_checkpoint(kind))
    start = {"model": settings.model.model_copy(update={"head_start": "label_names"})}
    model = load_model(settings.model_copy(update=start), labels)
    texts = ["loan", "send card", "my cash"]
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt")
    logits = model.module({k: encoded[k] for k in ("input_ids", "attention_mask")})
    assert logits.argmax(1).tolist() == [2, 0, 1]
    # A name of its own gives the whole length of the features.
    torch.testing.assert_close(logits.max(1).values, torch.full((3,), 10.0), rtol=1e-4, atol=0)
    assert not load_model(settings, labels).module.head.weight.any()


def test_frozen_a_is_not_sent_but_saved(tiny_model, tmp_path):
    model = tiny_model("bert", lora={"freeze_a": True})
    names = [s.name for s in model.manifest.segments if s.group == "lora"]
    assert names
    assert all("lora_B" in name for name in names)
    model.save_adapter(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    a = {name: tensor for name, tensor in saved.items() if "lora_A" in name}
    assert len(a) == len(names)
    assert all(bool(tensor.any()) for tensor in a.values())


def test_vector_goes_in_and_out_in_manifest_order(tiny_model):
    model = tiny_model("gpt2")
    vector = np.arange(model.manifest.length, dtype=np.float32)
    model.set_adapter(vector)
    assert np.array_equal(model.adapter(), vector)
    for segment in model.manifest.segments:
        parameter = dict(model.module.named_parameters())[segment.name]
        assert np.array_equal(parameter.detach().numpy().reshape(-1), vector[segment.slice])
    copy = model.adapter()
    copy[:] = 0
    assert np.array_equal(model.adapter(), vector)


def test_wrong_vectors_are_refused(tiny_model):
    model = tiny_model()
    before = model.adapter()
    for bad in (np.zeros(3), np.full(model.manifest.length, np.nan)):
        with pytest.raises(TrainingError):
            model.set_adapter(bad)
    assert np.array_equal(model.adapter(), before)


def test_manifest_does_not_depend_on_the_order_given():
    shapes = [("b", (2, 3), "head"), ("a.lora_A", (4,), "lora")]
    manifest = AdapterManifest.of(shapes)
    assert manifest == AdapterManifest.of(reversed(shapes))
    assert manifest.length == 10
    assert [(s.name, s.slice) for s in manifest.segments] == [
        ("a.lora_A", slice(0, 4)),
        ("b", slice(4, 10)),
    ]
    assert manifest.per_value(1.0, 2.0).tolist() == [1.0] * 4 + [2.0] * 6
    assert manifest.fingerprint != AdapterManifest.of([("b", (3, 2), "head")]).fingerprint


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", "classification"), ("gpt2", "causal"), ("llama", "instruction")]
)
def test_saved_adapters_load_here_and_in_plain_peft(
    kind, task, tiny_model, tiny_checkpoint, tmp_path
):
    model = tiny_model(kind, task)
    model.save_adapter(tmp_path / "adapter")
    fresh = tiny_model(kind, task, trained=False)
    fresh.load_adapter(tmp_path / "adapter")
    assert np.array_equal(fresh.adapter(), model.adapter())
    auto = AutoModel if task == "classification" else AutoModelForCausalLM
    base = auto.from_pretrained(tiny_checkpoint(kind))
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[4, 5, 6, 7, 8]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    theirs = plain(input_ids=ids)
    if task == "classification":
        ours = model.module.stack.last_states(batch)
        torch.testing.assert_close(ours, theirs.last_hidden_state, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(
            model.module(batch)[0], theirs.logits[0, :-1], atol=1e-5, rtol=1e-4
        )


def test_saved_folders_are_the_same_byte_for_byte(tiny_model, tmp_path):
    for name in ("one", "two"):
        tiny_model("bert").save_adapter(tmp_path / name)
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert files == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "shared_model.json",
    ]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("damage", ["cut", "nan", "missing", "other labels", "other base"])
def test_damaged_or_foreign_adapters_are_refused(damage, tiny_model, tmp_path):
    model, folder = tiny_model("bert"), tmp_path / "adapter"
    model.save_adapter(folder)
    before = model.adapter()
    path = folder / "adapter_model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "nan":
        save_file({k: v * float("nan") for k, v in load_file(path).items()}, path)
    elif damage == "missing":
        (folder / "head.safetensors").unlink()
    else:
        about = json.loads((folder / "shared_model.json").read_text())
        about |= {"labels": ["x"]} if damage == "other labels" else {"base_fingerprint": "0"}
        (folder / "shared_model.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=r"adapter|head"):
        model.load_adapter(folder)
    assert np.array_equal(model.adapter(), before)


@pytest.mark.parametrize(
    "damage",
    [
        "no folder",
        "no config",
        "no weights",
        "cut weights",
        "lost weight",
        "bad json",
        "unknown type",
    ],
)
def test_damaged_checkpoints_are_refused(damage, tiny_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("bert"), folder)
    weights = folder / "model.safetensors"
    if damage == "no folder":
        shutil.rmtree(folder)
    elif damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no weights":
        weights.rename(folder / "pytorch_model.bin")
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "lost weight":
        tensors = load_file(weights)
        tensors.pop("encoder.layer.1.attention.self.query.weight")
        save_file(tensors, weights, {"format": "pt"})
    elif damage == "bad json":
        (folder / "config.json").write_text("{")
    else:
        (folder / "config.json").write_text('{"model_type": "rnn"}')
    with pytest.raises(CheckpointError) as caught:
        load_model(config(folder), ("a", "b"))
    assert str(folder) in caught.value.message


def test_fingerprint_is_of_contents_not_of_the_path(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint("bert"), tmp_path / "copy")
    first = load_model(config(tiny_checkpoint("bert")), ("a", "b"))
    second = load_model(config(tmp_path / "copy"), ("a", "b"))
    assert first.fingerprint == second.fingerprint
    values = json.loads((tmp_path / "copy" / "config.json").read_text())
    values["layer_norm_eps"] = 1e-6
    (tmp_path / "copy" / "config.json").write_text(json.dumps(values))
    third = load_model(config(tmp_path / "copy"), ("a", "b"))
    assert third.fingerprint != first.fingerprint


def test_what_does_not_fit_is_refused_with_a_remedy(tiny_checkpoint):
    bert = tiny_checkpoint("bert")
    with pytest.raises(ConfigError, match="causal model"):
        load_model(config(bert, "causal"))
    with pytest.raises(ConfigError, match="two labels"):
        load_model(config(bert), ("only",))
    with pytest.raises(ConfigError, match="has 3 layers"):
        load_model(config(bert, last_layers=4), ("a", "b"))
    with pytest.raises(ConfigError, match=r"no linear layer 'q_proj'(?s:.*)query"):
        load_model(config(bert, target_modules=["q_proj"]), ("a", "b"))


def test_dropout_is_off_though_the_model_stays_in_training_mode(tiny_checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("bert"), folder)
    values = json.loads((folder / "config.json").read_text())
    values |= {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    (folder / "config.json").write_text(json.dumps(values))
    model = load_model(config(folder), ("a", "b"))
    ids = torch.tensor([[4, 5, 6, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert model.module.training
    assert torch.equal(model.module.features(batch), model.module.features(batch))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_causal_classifier_pools_the_last_real_token(kind, tiny_model):
    model = tiny_model(kind, model={"feature_scale": 0.0})
    ids = torch.tensor([[4, 5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    states = model.module.stack.last_states({"input_ids": ids, "attention_mask": mask})
    features = model.module.features({"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(features[0], states[0, 2])


def test_encoder_pools_the_mean_of_real_tokens_to_the_given_length(tiny_model):
    model = tiny_model("bert", model={"feature_scale": 10.0})
    batch = {
        "input_ids": torch.tensor([[4, 5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 0, 0]]),
    }
    mean = model.module.stack.last_states(batch)[0, :3].mean(0)
    torch.testing.assert_close(model.module.features(batch)[0], 10 * mean / mean.norm())


def test_features_centred_at_label_names_lose_what_all_names_share(tiny_checkpoint, tmp_path):
    names = ("card lost", "card stolen", "cash back")
    base = config(tiny_checkpoint("bert"))
    plain = load_model(base, names)
    section = base.model.model_copy(update={"feature_center": "label_names"})
    centred = load_model(base.model_copy(update={"model": section}), names)
    encoded = plain.tokenizer(list(names), padding=True, return_tensors="pt")
    batch = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    lengths_one = plain.module.features(batch) / 10
    expected = lengths_one - lengths_one.mean(0)
    expected = 10 * expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(centred.module.features(batch), expected, atol=1e-4, rtol=1e-4)
    assert "center" not in centred.module.state_dict(), "made again from public names"
    centred.save_adapter(tmp_path / "adapter")
    about = json.loads((tmp_path / "adapter" / "shared_model.json").read_text())
    assert about["feature_center"] == "label_names"


def test_centred_features_need_a_length(tiny_checkpoint):
    values = config(tiny_checkpoint("bert")).model_dump()
    values["model"] |= {"feature_center": "label_names", "feature_scale": 0.0}
    with pytest.raises(ConfigError, match="feature_scale above 0"):
        parse(RunConfig, values, "test")


def test_an_adapter_that_names_its_base_by_the_earlier_fingerprint_is_read(
    tiny_model, tmp_path, caplog
):
    model, folder = tiny_model("bert"), tmp_path / "adapter"
    model.save_adapter(folder)
    about = json.loads((folder / "shared_model.json").read_text())
    about["base_fingerprint"] = model.earlier_fingerprint
    (folder / "shared_model.json").write_text(json.dumps(about))
    fresh = tiny_model("bert", trained=False)
    fresh.load_adapter(folder)
    assert np.array_equal(fresh.adapter(), model.adapter())
    assert "earlier kind of fingerprint" in caplog.text


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"lora": {"alpha": 3.0}}, "lora_alpha differs"),
        ({"model": {"feature_scale": 3.0}}, "feature_scale differs"),
        ({"model": {"pooling": "cls"}}, "pooling differs"),
    ],
)
def test_an_adapter_for_another_function_of_the_same_shapes_is_refused(
    sections, words, tiny_model, tmp_path
):
    tiny_model("bert").save_adapter(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=words):
        tiny_model("bert", **sections).load_adapter(tmp_path / "adapter")


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"7"])
def test_a_damaged_description_of_an_adapter_is_refused(content, tiny_model, tmp_path):
    model, folder = tiny_model("bert"), tmp_path / "adapter"
    model.save_adapter(folder)
    (folder / "shared_model.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        model.load_adapter(folder)
