"""Every method under every mechanism: what moves, what it weighs, and what is left behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
from adapters.test_spaces import WAYS
from hypothesis import given
from hypothesis import strategies as st
from support.federation import LABELS, records, small_config, write_jsonl
from support.tasks import load_model

from fedllm.adapters import adapter_of, sent_in_turn
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.summary import read_summary
from fedllm_server.simulation import simulate

ADAPTERS = ("lora", "ffa", "ffa_orthonormal", "eva", "rolora", "fedsvd", "core")
METHODS = (*ADAPTERS, "bitfit")


def model_of(tiny_checkpoint, method, kind="bert", **sections):
    lora = {"rank": 2, "method": method, **sections.pop("lora", {})}
    return load_model(small_config(tiny_checkpoint(kind), lora=lora, **sections), LABELS)


@pytest.fixture(params=METHODS)
def model(request, tiny_checkpoint):
    return model_of(tiny_checkpoint, request.param)


@pytest.fixture
def run(tiny_checkpoint, tmp_path):
    def start(name, method, **sections):
        train = write_jsonl(tmp_path / "train.jsonl", records(60))
        test = write_jsonl(tmp_path / "test.jsonl", records(12, seed=9))
        merged = {name: dict(section) for name, section in sections.items()}
        merged["rounds"] = {"rollback_rise": 0.0, "count": 3, **merged.get("rounds", {})}
        merged["lora"] = {"rank": 2, "method": method, **merged.get("lora", {})}
        if method == "eva":
            public = write_jsonl(tmp_path / "public.jsonl", records(20, seed=5))
            merged["lora"]["public_texts"] = str(public)
        config = small_config(
            tiny_checkpoint("bert"),
            data={"train": str(train), "test": str(test), "labels": None},
            **merged,
        )
        out = tmp_path / name
        return config, out, simulate(config, out, observers=[])

    return start


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "method",
    # What eva sends is laid out as fedsvd's.
    [pytest.param(m, marks=pytest.mark.slow) if m == "eva" else m for m in METHODS[2:]],
)
def test_every_method_goes_through_every_mechanism(run, tiny_checkpoint, method, way):
    config, out, summary = run("run", method, **WAYS[way])
    assert summary.rounds == 3
    assert "loss" in summary.metrics
    state = load_checkpoint(out / "checkpoints")
    assert len(state.adapter) == summary.model["adapter_parameters"]
    model = load_model(config, LABELS)
    first = adapter_of(model).start()
    moved = {
        segment.kind
        for segment in adapter_of(model).down.segments
        if not np.array_equal(first[segment.slice], state.adapter[segment.slice])
    }
    expected = {
        "ffa_orthonormal": {"B"},
        # A, once: before the first round.
        "eva": {"A", "B"},
        "rolora": {"A", "B"},
        "fedsvd": {"A", "B"},
        "core": {"R"},
        "bitfit": {"base"},
    }
    assert moved == {*expected[method], "head"}
    if way != "none":
        assert 0 < summary.privacy["epsilon"] <= 4.0


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(-3, 3))
def test_the_way_up_is_linear_and_lengthens_nothing(models, number, seed, factor):
    for model in models.values():
        method = adapter_of(model, number)
        one, two = np.random.default_rng(seed).normal(size=(2, method.trained.length))
        both = method.upward(factor * one - two)
        np.testing.assert_allclose(both, factor * method.upward(one) - method.upward(two))
        assert len(both) == method.up.length
        assert np.linalg.norm(method.upward(one)) <= np.linalg.norm(one)
        assert np.abs(method.upward(one)).max() <= np.abs(one).max()


@pytest.fixture(scope="module")
def models(tiny_checkpoint):
    return {method: model_of(tiny_checkpoint, method) for method in METHODS}


def test_what_is_placed_is_held_and_only_what_a_round_trains_needs_a_gradient(model):
    for number in (1, 2, 3):
        method = adapter_of(model, number)
        adapter = method.start() + np.float32(0.25)
        method.place(adapter)
        assert np.array_equal(method.held(), adapter)
        assert model.manifest == method.trained
        named = dict(model.module.named_parameters())
        trained = {segment.name for segment in method.trained.segments}
        assert {n for n, p in named.items() if p.requires_grad} == trained


def test_a_look_at_another_round_leaves_nothing_behind(model):
    first = adapter_of(model, 1)
    first.place(first.start() + np.float32(0.5))
    held, trained = first.held(), model.manifest
    with model.unchanged():
        adapter_of(model, 2).place(first.start())
    assert np.array_equal(first.held(), held)
    assert model.manifest == trained
    assert [p.requires_grad for p in model.trained] == [True] * len(trained.segments)


def test_sites_train_the_half_that_the_signed_round_names(run, monkeypatch):
    """They keep no count: the round before may have been another coordinator's, or missed."""
    from fedllm.federation.site.work import TrainingAtSite

    seen, right = [], TrainingAtSite.train

    def spied(self, *arguments):
        seen.append({s.kind for s in self.model.manifest.segments} - {"head"})
        result = right(self, *arguments)
        assert len(result.update) == self.method.up.length
        return result

    monkeypatch.setattr(TrainingAtSite, "train", spied)
    run("run", "rolora")
    assert seen == [{"B"}] * 3 + [{"A"}] * 3 + [{"B"}] * 3


def test_halves_of_different_sizes_take_turns(tiny_checkpoint, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", records(60))
    config = small_config(
        # One layer for query, key and value together: B is three times as large as A.
        tiny_checkpoint("gpt2"),
        data={"train": str(train)},
        lora={"rank": 2, "method": "rolora"},
        rounds={"count": 3, "optimizer": "adam", "learning_rate": 0.1},
        privacy={"epsilon": 4.0},
    )
    model = load_model(config, LABELS)
    assert len({up.length for up in sent_in_turn(model)}) == 2
    summary = simulate(config, tmp_path / "run", observers=[])
    assert summary.rounds == 3
    assert summary.model["sent_parameters"] == max(up.length for up in sent_in_turn(model))


def test_what_goes_down_is_the_same_in_all_rounds(model):
    spaces = {
        (adapter_of(model, n).down, adapter_of(model, n).start().tobytes()) for n in (1, 2, 3)
    }
    assert len(spaces) == 1


def test_what_each_method_sends(tiny_checkpoint):
    sent = {}
    for method in METHODS:
        turns = sent_in_turn(model_of(tiny_checkpoint, method))
        sent[method] = [sum(s.size for s in up.segments if s.kind != "head") for up in turns]
    # Six layers of 16 by 16, at rank 2.
    assert sent == {
        "lora": [384],
        "ffa": [192],
        "ffa_orthonormal": [192],
        "eva": [192],
        "rolora": [192, 192],
        "fedsvd": [192],
        "core": [24],
        # Three layers: biases of six linear layers but the keys', and two norms.
        "bitfit": [3 * (4 * 16 + 32 + 4 * 16)],
    }


def test_half_of_the_adapter_is_half_of_the_bytes(run):
    # So small a head that adapters decide, and no polynomial of ciphertexts left half empty.
    sizes = {}
    for method in ("lora", "rolora"):
        _, _, summary = run(method, method, lora={"rank": 16}, encryption={"scheme": "none"})
        sizes[method] = summary.bytes_up
    assert 0.5 <= sizes["rolora"] / sizes["lora"] < 0.6


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        pytest.param("ffa_orthonormal", "average", marks=pytest.mark.slow),
        pytest.param("eva", "adam", marks=pytest.mark.slow),
        ("rolora", "momentum"),
        pytest.param("rolora", "adam", marks=pytest.mark.slow),
        pytest.param("fedsvd", "momentum", marks=pytest.mark.slow),
        ("fedsvd", "adam"),
        pytest.param("core", "momentum", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_cut_off_in_any_round_ends_as_it_would_have(
    run, monkeypatch, method, optimizer
):
    rounds = {"count": 4, "optimizer": optimizer, "learning_rate": 0.5}
    _, _, whole = run("whole", method, rounds=rounds)
    config, out, _ = run("cut", method, rounds={**rounds, "count": 4})
    assert read_summary(out).adapter_sha256 == whole.adapter_sha256
    from fedllm_server import loop

    for stop in (1, 2):
        cut = out.with_name(f"cut-{stop}")

        def dies(folder, state, vault, stop=stop, right=loop.save_checkpoint):
            path = right(folder, state, vault)
            if state.round == stop and state.report is not None and len(state.noise) == stop:
                raise KeyboardInterrupt
            return path

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_checkpoint", dies)
            with pytest.raises(KeyboardInterrupt):
                simulate(config, cut, observers=[])
        assert simulate(config, cut, resume=True, observers=[]).adapter_sha256 == (
            whole.adapter_sha256
        )


def test_halves_alternate_round_by_round(run):
    config, out, _ = run("run", "rolora", rounds={"count": 1})
    model = load_model(config, LABELS)
    down = adapter_of(model).down
    states = [adapter_of(model).start(), load_checkpoint(out / "checkpoints").adapter]
    for count in (2, 3):
        _, out, _ = run(f"run-{count}", "rolora", rounds={"count": count})
        states.append(load_checkpoint(out / "checkpoints").adapter)
    for before, after, moves in zip(states, states[1:], ["B", "A", "B"], strict=False):
        moved = {
            s.kind for s in down.segments if not np.array_equal(before[s.slice], after[s.slice])
        }
        assert moved == {moves, "head"}


@pytest.mark.parametrize("method", ADAPTERS)
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_peft_alone_loads_a_saved_adapter_with_the_same_logits(
    tiny_checkpoint, tmp_path, method, kind
):
    import torch
    from peft import PeftModel
    from transformers import AutoModel

    model = model_of(tiny_checkpoint, method, kind, model={"feature_scale": 0.0})
    place = adapter_of(model, 2)
    values = place.start() + 0.2 * np.random.default_rng(1).normal(size=place.down.length)
    place.place(values.astype(np.float32))
    model.save_adapter(tmp_path / "adapter")
    batch = {
        "input_ids": torch.tensor([[4, 5, 6, 7], [8, 9, 10, 4]]),
        "attention_mask": torch.ones(2, 4, dtype=torch.int64),
    }
    model.module.eval()
    with torch.no_grad():
        wanted = model.module.stack.last_states(batch)
        plain = PeftModel.from_pretrained(
            AutoModel.from_pretrained(tiny_checkpoint(kind)), tmp_path / "adapter"
        ).eval()
        found = plain(**batch).last_hidden_state
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        bare = AutoModel.from_pretrained(tiny_checkpoint(kind)).eval()(**batch).last_hidden_state
        assert not torch.allclose(bare, wanted, atol=1e-2)
    again = model_of(tiny_checkpoint, method, kind, model={"feature_scale": 0.0})
    again.load_adapter(tmp_path / "adapter")
    assert np.array_equal(adapter_of(again).held(), place.held())


def test_a_summary_names_the_whole_adapter(run):
    import hashlib

    _, out, summary = run("run", "fedsvd")
    state = load_checkpoint(out / "checkpoints")
    assert summary.adapter_sha256 == hashlib.sha256(state.adapter.tobytes()).hexdigest()
    assert json.loads((out / "summary.json").read_text())["model"]["adapter_parameters"] == len(
        state.adapter
    )


def test_a_half_that_can_learn_nothing_yet_is_no_reason_to_refuse_a_round(
    tiny_checkpoint, random_dataset
):
    """B is still zero where the first round was rejected, and A has no gradient then."""
    from fedllm.federation.site.work import SiteWork
    from fedllm.mechanisms import mechanism_of
    from fedllm.randomness import RandomStream
    from fedllm.training.local import train_locally

    model = model_of(tiny_checkpoint, "rolora")
    config = small_config(tiny_checkpoint("bert"), lora={"rank": 2, "method": "rolora"})
    for number in (1, 2):
        method = adapter_of(model, number)
        SiteWork("site").require_trainable(config, model, method, method.start())
    adapter_of(model, 2).place(adapter_of(model, 2).start())
    settings = mechanism_of(config).settings(8, None)
    data = random_dataset(8)
    update = train_locally(model, data, settings, RandomStream.seeded(1), RandomStream.seeded(2))
    moved = {s.kind for s in model.manifest.segments if update.update[s.slice].any()}
    assert moved == {"head"}


@pytest.mark.parametrize("method", METHODS)
def test_audits_train_a_copy_by_the_runs_own_method(tiny_checkpoint, method):
    from fedllm.audit.attacks import canaries
    from fedllm.audit.attacks.sandbox import Sandbox
    from fedllm.randomness import RandomStream

    config = small_config(
        tiny_checkpoint("bert"),
        lora={"rank": 2, "method": method},
        privacy={"epsilon": 2.0},
        training={"sampling_rate": 1.0, "optimizer": "sgd", "local_steps": 1},
    )
    sandbox = Sandbox(config, load_model(config, LABELS), [])
    stream = RandomStream.seeded(1)

    assert canaries.white_box(sandbox, 20, 0.95, stream, lambda *_: None).canaries >= 20
    records = sandbox.encode([sandbox.made_up_record(stream) for _ in range(8)])
    last = sandbox.train(records, sandbox.settings(8), lambda *_: None)
    assert len(last) == adapter_of(sandbox.model).down.length
    sandbox.reset()
    assert np.array_equal(adapter_of(sandbox.model).held(), adapter_of(sandbox.model).start())
