"""Secrets planted into a sandbox: told by a model that repeats, hidden by one that does not."""

from __future__ import annotations

import numpy as np
import pytest
from support.tasks import load_model
from typer.testing import CliRunner

from fedllm.audit.attacks import secrets
from fedllm.audit.attacks.run import without_privacy
from fedllm.audit.attacks.sandbox import Sandbox, made_up_record
from fedllm.commands.audit import app
from fedllm.config import RunConfig, parse, to_toml
from fedllm.errors import ConfigError
from fedllm.randomness import RandomStream
from fedllm.tasks.answering import Answering
from fedllm.tasks.instruction import Instruction


def configuration(checkpoint, **sections):
    values = {
        "name": "secrets",
        "task": "instruction",
        "model": {"path": str(checkpoint), "max_length": 32},
        "lora": {"rank": 2},
        "data": {"train": "unused.jsonl"},
        "rounds": {"count": 2, "min_sites": 2},
        "training": {"local_steps": 1, "sampling_rate": 1.0},
        "privacy": {"epsilon": 1.0},
        **sections,
    }
    return parse(RunConfig, values, "test")


@pytest.fixture
def config(tiny_checkpoint):
    return configuration(tiny_checkpoint("llama"))


def test_codes_have_one_form_and_secrets_differ():
    stream = RandomStream.seeded(1)
    planted = secrets.make_secrets(20, stream)
    assert len({s.prompt for s in planted}) == len({s.response for s in planted}) == 20
    for text in [s.response for s in planted] + secrets.random_codes(5, stream):
        digits = text.split()
        assert len(digits) == 6
        assert all(len(d) == 1 and d.isdigit() for d in digits)


def test_three_models_are_measured_on_the_same_secrets(config, monkeypatch):
    stream = RandomStream.seeded(2)
    public = [made_up_record(Instruction(), (), stream) for _ in range(5)]
    sandbox = Sandbox(config, load_model(config), public)
    heard, trained = [], []
    right = Sandbox.train

    def watched(self, dataset, settings, *rest):
        trained.append((settings.noise_multiplier is not None, dataset.number_of_units))
        return right(self, dataset, settings, *rest)

    monkeypatch.setattr(Sandbox, "train", watched)
    found = secrets.audit_extraction(
        sandbox, Answering, without_privacy(config), 4, 16, stream, lambda *a: heard.append(a)
    )
    assert [m.name for m in found.models] == [
        "before training",
        "as the run asks",
        "without privacy",
    ]
    assert [m.epsilon for m in found.models] == [None, 1.0, None]
    assert trained == [(True, 9), (False, 9)]
    assert found.maximum == 4.0
    assert 0.9 < found.expected < 1.5
    assert all(len(m.exposure) == 4 for m in found.models)
    assert heard[-1] == ("without privacy", 2, 2)


def test_a_model_that_repeats_its_secrets_is_told(config, monkeypatch):
    sandbox = Sandbox(config, load_model(config), [])
    planted = {}
    right = secrets.make_secrets

    def remember(count, stream):
        made = right(count, stream)
        planted.update({s.prompt: s.response for s in made})
        return made

    monkeypatch.setattr(secrets, "make_secrets", remember)
    monkeypatch.setattr(Answering, "complete", lambda self, prompts: [planted[p] for p in prompts])
    monkeypatch.setattr(
        Answering,
        "losses",
        lambda self, pairs: np.array([0.0 if planted[p] == r else 1.0 for p, r in pairs]),
    )
    found = secrets.audit_extraction(
        sandbox, Answering, without_privacy(config), 3, 16, RandomStream.seeded(3), lambda *a: None
    )
    assert all(m.extracted == 3 and m.exposure == (4.0, 4.0, 4.0) for m in found.models)


def test_a_classifier_is_refused_with_another_audit_named(tiny_checkpoint, tmp_path):
    config = configuration(
        tiny_checkpoint("bert"),
        task="classification",
        data={"train": "unused.jsonl", "labels": ["a", "b"]},
    )
    (tmp_path / "run.toml").write_text(to_toml(config))
    out = CliRunner().invoke(app, ["extraction", str(tmp_path / "run.toml")])
    assert isinstance(out.exception, ConfigError)
    assert "audit membership" in str(out.exception)
