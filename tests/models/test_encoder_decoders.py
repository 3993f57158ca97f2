"""Encoder-decoders are run, cut and saved as the models that transformers and peft know."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from peft import PeftModel
from support.doubles import doubles
from support.one_by_one import RELATIVE, adds_up, all_different, same, trained_somehow
from support.tasks import load_model
from support.tiny_models import DECODER_LAYERS, ENCODER_DECODERS, LAYERS, save_tiny
from transformers import AutoModelForSeq2SeqLM

from fedllm.config import RunConfig, parse
from fedllm.models.prefix import PrefixCache
from fedllm.privacy.dpsgd import forget_step, per_sample_gradients, per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.tasks.answering import Answering
from fedllm.training.evaluate import evaluate, unit_scores
from fedllm.training.objectives import record_losses

ALL_LAYERS = LAYERS + DECODER_LAYERS
END = 3
# Everything, some of the encoder, the decoder, its last layer.
FIRST = [0, LAYERS - 1, LAYERS, ALL_LAYERS - 1]
every_kind = pytest.mark.parametrize("kind", ENCODER_DECODERS)
every_cut = pytest.mark.parametrize("first", FIRST)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return cache(lambda kind: save_tiny(kind, tmp_path_factory.mktemp(kind)))


def run(folder, task="instruction", **lora):
    values = {
        "name": "tiny",
        "task": task,
        "model": {"path": str(folder), "max_length": 16},
        "data": {"train": "unused.jsonl"},
        "lora": {"rank": 2, **lora},
    }
    return parse(RunConfig, values, "test")


@pytest.fixture(scope="module")
def shared(folder_of):
    """Load a model with a trained adapter, in float64; each once, which no test changes."""

    @cache
    def make(kind, first=LAYERS):
        return trained_somehow(
            load_model(run(folder_of(kind), last_layers=ALL_LAYERS - first)), kind
        )

    return make


@pytest.fixture
def records(random_dataset):
    """Make five records, with prompts and responses of several lengths; one has no prompt."""

    def make(persons=None):
        data = random_dataset(5, "instruction", persons=persons)
        lengths = np.diff(data.offsets)
        return replace(data, targets=np.array([0, 2, *lengths[2:4] - 1, 3], dtype=np.int32))

    return make


def apart(data, index):
    """Return a record's prompt, with the token that ends it, and its response: (1, T), (1, U)."""
    ids = data.tokens[data.offsets[index] : data.offsets[index + 1]].astype(np.int64)
    start = int(data.targets[index])
    prompt = torch.from_numpy(np.append(ids[:start], END))
    return prompt[None], torch.from_numpy(ids[start:])[None]


def gradient_alone(model, data, index):
    """Return one record's gradient, (P,), of transformers' own loss of it, without padding."""
    prompt, response = apart(data, index)
    loss = model.module.backbone(input_ids=prompt, labels=response).loss
    parts = torch.autograd.grad(loss, model.trained)
    return torch.cat([part.reshape(-1) for part in parts])


@every_cut
@every_kind
def test_gradients_are_those_of_a_loop_over_records(kind, first, shared, records):
    model, data = shared(kind, first), records()
    with doubles():
        expected = torch.stack([gradient_alone(model, data, index) for index in range(5)])
        batch = model.prefix.attach(data, np.arange(5), data.batch(np.arange(5)))
        assert ("states" in batch) == (first >= LAYERS)
        with per_sample_hooks(model.module, model.row_layers):
            gradients = per_sample_gradients(model.trained, lambda: record_losses(model, batch))
        forget_step(model.module)
        for row in range(5):
            same(torch.cat([g[row].reshape(-1) for g in gradients]), expected[row])
        all_different(expected)


@every_cut
@every_kind
def test_a_private_step_adds_up_clipped_gradients_of_units(kind, first, shared, records):
    """As sites do it: by unit, each computed of its own records, from kept states."""
    units = [0, 1, 1, 1, 2]
    model, data = shared(kind, first), records(units)
    adds_up(model, data, units, lambda index: gradient_alone(model, data, index))


@every_cut
@every_kind
def test_cut_and_kept_it_is_the_model_that_peft_loads(
    kind, first, shared, folder_of, records, tmp_path
):
    """A saved adapter on transformers' own model gives the losses and logits of the cut model."""
    model, data = shared(kind, first), records()
    model.save_adapter(tmp_path)
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder_of(kind), dtype=torch.float32)
    whole = PeftModel.from_pretrained(plain, tmp_path).eval().double()
    with doubles(), torch.no_grad():
        batch = model.prefix.attach(data, np.arange(5), data.batch(np.arange(5)))
        logits, _, rows = model.module(batch)
        losses = record_losses(model, batch)
        for index in range(5):
            prompt, response = apart(data, index)
            theirs = whole(input_ids=prompt, labels=response)
            same(logits[rows == index], theirs.logits[0])
            same(losses[index], theirs.loss.reshape(()))
            with whole.disable_adapter():
                untrained = whole(input_ids=prompt, labels=response).logits
            assert float((theirs.logits - untrained).norm()) > 1e-3


@every_kind
def test_an_answer_depends_on_no_other_record_and_on_no_padding(kind, shared, records):
    model, data = shared(kind), records()
    with doubles(), torch.no_grad():
        batches = [data.batch(np.array([index])) for index in range(5)]
        alone = torch.cat([model.module(batch)[0] for batch in batches])
        same(model.module(data.batch(np.arange(5)))[0], alone)
        # A batch of ours is padded to a multiple of 8; here to nothing, and whatever pads it.
        sizes = [int(batch["attention_mask"].sum()) for batch in batches]
        assert len(set(sizes)) > 1
        for index, (batch, size) in enumerate(zip(batches, sizes, strict=True)):
            bare = {key: value[:, :size] for key, value in batch.items()}
            other = dict(batch, input_ids=batch["input_ids"].clone())
            other["input_ids"][:, size:] = 5
            for way in (bare, other):
                same(model.module(way)[0], model.module(batch)[0])
                same(record_losses(model, way)[0], record_losses(model, data.batch([index]))[0])


@every_kind
def test_what_is_kept_of_a_record_is_its_prompt(kind, shared, records, tmp_path, monkeypatch):
    """And is the same without room to keep it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    model, data = shared(kind), records()
    rows = np.array([3, 0, 4, 1, 2])
    with doubles():
        kept = PrefixCache(model.module, worthwhile=True, pooled=False)
        none = PrefixCache(model.module, worthwhile=True, pooled=False, budget_bytes=0)
        one, other = (c.attach(data, rows, data.batch(rows))["states"] for c in (kept, none))
        assert torch.equal(one, other)
        assert one.shape == (5, 16, 16)
        short = int(np.flatnonzero(data.targets[rows] == 0)[0])
        assert not bool(one[short, 8:].any())
        sizes = [
            min(-(-(int(t) + 1) // 8) * 8, n)
            for t, n in zip(data.targets, np.diff(data.offsets), strict=True)
        ]
        assert kept.used_bytes == sum(sizes) * 16 * 8


@every_kind
def test_an_evaluation_is_the_mean_over_tokens(kind, shared, records):
    model, data = shared(kind), records()
    with doubles(), torch.no_grad():
        found = evaluate(model, data, batch_size=2)
        each = []
        for index in range(5):
            prompt, response = apart(data, index)
            each.append((model.module.backbone(input_ids=prompt, labels=response).loss, response))
        counts = np.array([response.shape[1] for _, response in each])
        losses = np.array([float(loss) for loss, _ in each])
        assert found["tokens"] == counts.sum()
        assert found["loss"] == pytest.approx((losses * counts).sum() / counts.sum(), rel=RELATIVE)
        assert unit_scores(model, data)[:, 0] == pytest.approx(losses, rel=RELATIVE)


@every_kind
def test_responses_are_completed_as_transformers_does(kind, folder_of):
    model = load_model(run(folder_of(kind), last_layers=1))
    drawn = RandomStream.seeded(3, kind).normal(model.manifest.length)
    model.set_adapter(0.3 * drawn)
    prompts = ["card fee", "my bank", "lost card", "send cash my loan rate"]
    asked = Answering(model, 64)
    found = asked.complete(prompts)
    for prompt, reply in zip(prompts, found, strict=True):
        # The words around a prompt are unknown to this tokenizer, as many as they are.
        text = f"Question: {prompt}\nAnswer:"
        ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ids = torch.cat([ids, torch.tensor([[END]])], 1)
        backbone = model.module.backbone
        written = backbone.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            decoder_start_token_id=backbone.config.decoder_start_token_id,
            eos_token_id=END,
            pad_token_id=0,
            use_cache=False,
        )[0, 1:]
        assert reply == model.tokenizer.decode(written, skip_special_tokens=True)
    losses = asked.losses([(prompt, "card fee") for prompt in prompts])
    assert losses.shape == (4,)
    assert (losses > 0).all()


@every_cut
@every_kind
def test_layers_and_projections_are_found(kind, first, shared):
    model, tiny = shared(kind, first), ENCODER_DECODERS[kind]
    adapted = {s.name.split(".lora_")[0] for s in model.manifest.segments}
    assert {name.rpartition(".")[2] for name in adapted} == set(tiny.targets)
    leaf = tiny.layers.rpartition(".")[2]
    names = [f".encoder.{leaf}.{i}." for i in range(LAYERS)]
    names += [f".{tiny.layers}.{i}." for i in range(DECODER_LAYERS)]
    for place, name in enumerate(names):
        # Query and value of self-attention, and in the decoder of attention to the prompt.
        wanted = 0 if place < first else 2 if place < LAYERS else 4
        assert sum(name in one for one in adapted) == wanted
    assert model.shape["layers"] == ALL_LAYERS
