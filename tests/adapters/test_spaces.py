"""Nobody assumes that what goes down, is trained and comes up has one length."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.federation import build, records, small_config, write_jsonl

from fedllm.adapters.method import AdapterMethod
from fedllm.models.manifest import AdapterManifest
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.ledger.ledger import Ledger
from fedllm_server.simulation import simulate


class HeadAndCounter(AdapterMethod):
    """LoRA and head are trained, the head alone is sent; down goes a counter of rounds as well."""

    @property
    def down(self) -> AdapterManifest:
        shapes = [(s.name, s.shape, s.group) for s in self.trained.segments]
        return AdapterManifest.of([*shapes, ("z.counter", (3,), "lora")])

    @property
    def up(self) -> AdapterManifest:
        heads = [s for s in self.trained.segments if s.group == "head"]
        return AdapterManifest.of((s.name, s.shape, s.group) for s in heads)

    def _inside(self) -> np.ndarray:
        return np.concatenate(
            [
                np.arange(s.start, s.start + s.size)
                for s in self.trained.segments
                if s.group == "head"
            ]
        )

    def start(self):
        return np.concatenate([self._model.initial, np.zeros(3, dtype=np.float32)])

    def place(self, adapter):
        assert len(adapter) == self.down.length
        self._model.set_adapter(adapter[:-3])

    def held(self):
        return np.concatenate([self._model.adapter(), np.zeros(3, dtype=np.float32)])

    def upward(self, change):
        assert len(change) == self.trained.length
        return change[self._inside()]

    def next(self, adapter, mean, step):
        assert len(mean) == self.up.length
        moved = adapter.copy()
        moved[self._inside()] = step(adapter[self._inside()], mean)
        moved[-3:] += 1
        return moved


@pytest.fixture(autouse=True)
def three_lengths(monkeypatch):
    monkeypatch.setattr("fedllm.adapters.choice.PlainAdapter", HeadAndCounter)


SHARED = {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.3, "learning_rate": 1.0}
WAYS = {
    "none": {},
    "local": {"privacy": {"epsilon": 4.0}},
    "moving": {
        "privacy": {"epsilon": 4.0, "clipping_quantile": 0.5},
        "training": {"optimizer": "adam"},
    },
    "shared": {"privacy": {"epsilon": 4.0, "noise": "distributed"}, "training": SHARED},
    "discrete": {
        "privacy": {
            "epsilon": 4.0,
            "noise": "distributed",
            "distribution": "discrete_gaussian",
        },
        "training": SHARED,
        "encryption": {"bits": 20},
    },
    "site": {"privacy": {"epsilon": 4.0, "unit": "site"}},
    "evaluated": {
        "privacy": {"epsilon": 4.0},
        "evaluation": {"every": 1, "epsilon": 0.5, "holdout": 0.3},
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_a_run_with_three_lengths_goes_through_every_mechanism(tiny_checkpoint, tmp_path, way):
    train = write_jsonl(tmp_path / "train.jsonl", records(60))
    test = write_jsonl(tmp_path / "test.jsonl", records(12, seed=9))
    config = small_config(
        tiny_checkpoint("bert"),
        data={"train": str(train), "test": str(test), "labels": None},
        # The noise of some ways makes a model of three sites worse, and no round shall be undone.
        rounds={"rollback_rise": 0.0},
        **{name: dict(section) for name, section in WAYS[way].items()},
    )
    out = tmp_path / "run"
    summary = simulate(config, out, observers=[])
    assert summary.rounds == 2
    down = json.loads((out / "summary.json").read_text())["model"]["adapter_parameters"]
    model_values = np.load(next((out / "checkpoints").glob("round-00002/state.npz")))["adapter"]
    assert len(model_values) == down
    assert model_values[-3:].tolist() == [2, 2, 2]
    # Up goes the head alone: three labels.
    assert summary.bytes_up < summary.bytes_down
    if way != "none":
        assert 0 < summary.privacy["epsilon"] <= 4.0


def test_only_what_was_sent_has_moved_and_the_ledger_counts_it(tiny_checkpoint, tmp_path):
    config = small_config(
        tiny_checkpoint("bert"),
        privacy=WAYS["discrete"]["privacy"],
        training=SHARED,
        encryption={"bits": 20},
    )
    federation = build(tmp_path, config)
    assert federation.terms.adapter_length != federation.terms.update_length
    from fedllm.mechanisms import mechanism_of

    model = federation.model()
    method = HeadAndCounter(model)
    noise = mechanism_of(config).announced_noise(1, ())
    federation.adapter = method.start()
    outcome = federation.round(noise_multiplier=noise)
    assert len(outcome.mean) == method.up.length
    identity = federation.identities["site-0"]
    ledger = Ledger.open(tmp_path / "site-0.sqlite", "site-0", identity)
    (event,) = ledger.events_of_run("run-1")
    assert event.length == method.up.length
    assert epsilon([event], 1e-5).value < 4.0
