"""Canaries through the real training path: under a claim that holds, above one that does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from support.tasks import load_model
from typer.testing import CliRunner

from fedllm.audit.attacks import canaries
from fedllm.audit.attacks import sandbox as sandbox_module
from fedllm.audit.attacks.canaries import CanaryDataset, PlantedGradients, black_box, white_box
from fedllm.audit.attacks.results import CanaryAttack, CanaryResult, load, save
from fedllm.audit.attacks.sandbox import Sandbox, made_up_record
from fedllm.audit.selftest.material import LABELS, Material, made_up
from fedllm.commands.audit import app
from fedllm.config import to_toml
from fedllm.errors import FedllmError, PeerError
from fedllm.privacy import dpsgd
from fedllm.privacy.dpsgd import clipped_sum, per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.tasks.classification import Classification
from fedllm.training.objectives import record_losses


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("canaries"))


def configuration(material, **privacy):
    return material.config(
        rounds={"count": 3, "min_sites": 2},
        training={"local_steps": 1, "sampling_rate": 1.0, "microbatch_size": 256},
        privacy={"epsilon": 8.0, **privacy},
    )


@pytest.fixture(scope="module")
def sandbox(material):
    config = configuration(material)
    stream = RandomStream.seeded(1)
    public = [made_up_record(Classification(), LABELS, stream) for _ in range(20)]
    return Sandbox(config, load_model(config, LABELS), public)


def test_right_code_stays_under_its_claim(sandbox):
    found = white_box(sandbox, 400, 0.95, RandomStream.seeded(2), quiet)
    # About 3.3 with a standard deviation of 0.5: nothing found, or too much, is seven away.
    assert 0.0 < found.epsilon < 8.0
    assert found.epsilon_without_assumption <= found.epsilon


def test_without_noise_the_claim_is_refuted(sandbox, monkeypatch):
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))
    found = white_box(sandbox, 1000, 0.95, RandomStream.seeded(2), quiet)
    assert found.right == found.guesses
    assert found.epsilon > 8.0


def test_without_clipping_the_claim_is_refuted(sandbox, monkeypatch):
    from fedllm.training import local

    monkeypatch.setattr(local, "clipped_sum", lambda g, units, norm: clipped_sum(g, units, 1e9))
    monkeypatch.setattr(canaries, "_LENGTH", 40.0)
    assert white_box(sandbox, 1000, 0.95, RandomStream.seeded(2), quiet).epsilon > 8.0


def test_a_moving_clipping_norm_moves_in_the_sandbox_too(material, monkeypatch):
    config = material.config(
        rounds={"count": 3, "min_sites": 2},
        training={"local_steps": 1, "sampling_rate": 1.0, "optimizer": "adam"},
        privacy={"epsilon": 8.0, "clipping_quantile": 0.5},
    )
    box = Sandbox(config, load_model(config, LABELS), [])
    right, norms = sandbox_module.train_locally, []

    def watched(model, dataset, settings, *rest):
        result = right(model, dataset, settings, *rest)
        norms.append((settings.clipping_norm, result.clipping_norm))
        return result

    monkeypatch.setattr(sandbox_module, "train_locally", watched)
    records = made_up(20, "moving", lambda i: None)
    box.train(box.encode(records), box.settings(20), quiet)
    assert [start for start, _ in norms] == [1.0, *(end for _, end in norms[:-1])]
    assert all(start != end for start, end in norms)


def test_planted_gradients_are_one_coordinate_each_and_nothing_without_the_coin(sandbox):
    model = sandbox.model
    coins = np.arange(60) % 2 == 0
    coordinates = np.sort(RandomStream.seeded(4).permutation(model.manifest.length)[:60])
    short = sandbox.made_up_record(RandomStream.seeded(5), words=2)
    dataset = CanaryDataset(sandbox.encode([short] * 60), coins)
    planted = PlantedGradients(model, coordinates, coins, 2.0)
    batch = dataset.batch(np.arange(60))
    with planted.listening(), per_sample_hooks(model.module, model.row_layers):
        gradients = planted(model.trained, lambda: record_losses(model, batch))
    total = clipped_sum(gradients, None, 1.0)
    right = np.zeros(model.manifest.length)
    right[coordinates[coins]] = 1.0
    np.testing.assert_allclose(total.values, right, atol=1e-6)
    np.testing.assert_allclose(total.norms[coins], 2.0, rtol=1e-6)
    assert total.norms[~coins].max() < 1e-6


def test_coins_do_not_change_what_sampling_sees(sandbox):
    short = sandbox.made_up_record(RandomStream.seeded(5))
    inner = sandbox.encode([short] * 10)
    heads, tails = (CanaryDataset(inner, np.full(10, side)) for side in (True, False))
    assert heads.number_of_units == tails.number_of_units == 10
    assert torch.equal(heads.batch(np.arange(4))["canary"], torch.arange(4))


def test_loss_canaries_are_found_in_a_model_that_learnt_them_by_heart(material, monkeypatch):
    # The random model's tokenizer knows no other words.
    rows = iter(made_up(200, "canaries", lambda i: None))
    monkeypatch.setattr(Sandbox, "made_up_record", lambda *a, **k: next(rows))
    config = configuration(material, epsilon=None).model_copy(
        update={
            "training": configuration(material).training.model_copy(
                update={"learning_rate": 0.03, "optimizer": "adam", "local_steps": 100}
            )
        }
    )
    sandbox = Sandbox(config, load_model(config, LABELS), [])
    found = black_box(sandbox, 200, 0.95, RandomStream.seeded(3), quiet)
    assert found.kind == "black-box"
    # 3.2 to 3.4 for three seeds: far from the edge on any processor.
    assert found.epsilon > 1.0


def test_command_audits_a_run_folder_and_keeps_the_result(material, tmp_path):
    config = configuration(material)
    data = config.data.model_copy(update={"train": str(tmp_path / "none.jsonl")})
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(to_toml(config.model_copy(update={"data": data})))
    (folder / "summary.json").write_text("{}")
    out = CliRunner().invoke(app, ["canaries", str(folder), "--canaries", "60", "--json"])
    assert out.exit_code == 0
    printed = CanaryResult.model_validate(json.loads(out.stdout))
    assert load(folder, "canaries", CanaryResult) == printed
    assert [attack.kind for attack in printed.attacks] == ["white-box", "black-box"]
    assert printed.claimed == 8.0
    assert printed.recomputed == pytest.approx(8.0, rel=0.02)


def test_a_refuted_claim_has_exit_code_4(material, tmp_path, monkeypatch):
    from fedllm.audit.attacks import run as attacks

    attack = CanaryAttack(
        kind="white-box",
        canaries=10,
        guesses=10,
        right=10,
        epsilon=9.0,
        epsilon_without_assumption=5.0,
        confidence=0.95,
    )
    result = CanaryResult(claimed=8.0, recomputed=8.0, delta=1e-5, attacks=(attack,))
    monkeypatch.setattr(attacks, "run_canaries", lambda *a: result)
    config = configuration(material)
    (tmp_path / "run.toml").write_text(to_toml(config))
    out = CliRunner().invoke(app, ["canaries", str(tmp_path / "run.toml")])
    assert isinstance(out.exception, PeerError)
    assert "at least 9" in out.stdout or "9" in out.stdout.split("white-box")[1]


def test_damaged_results_are_named(tmp_path):
    assert load(tmp_path, "canaries", CanaryResult) is None
    path = save(
        tmp_path, "canaries", CanaryResult(claimed=None, recomputed=None, delta=1e-5, attacks=())
    )
    path.write_text("{}")
    with pytest.raises(FedllmError, match="fedllm audit canaries"):
        load(tmp_path, "canaries", CanaryResult)
