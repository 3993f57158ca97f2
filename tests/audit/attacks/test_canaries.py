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
from fedllm.audit.attacks.canaries import (
    CanaryDataset,
    Places,
    PlantedGradients,
    _white_box,
    black_box,
    groups_of,
    white_box,
)
from fedllm.audit.attacks.new_tokens import chosen, with_new_tokens
from fedllm.audit.attacks.results import CanaryAttack, CanaryResult, load, save
from fedllm.audit.attacks.sandbox import Sandbox, made_up_record, open_sandbox
from fedllm.audit.selftest.material import LABELS, Material, made_up
from fedllm.commands.audit import app
from fedllm.config import to_toml
from fedllm.errors import FedllmError, PeerError
from fedllm.privacy import dpsgd
from fedllm.privacy.dpsgd import added_up, clipped, per_sample_hooks
from fedllm.randomness import RandomStream
from fedllm.tasks import task_of
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
    # At this confidence right code passes its claim once in 10^10 times.
    found = white_box(sandbox, 400, 1 - 1e-10, RandomStream.seeded(2), quiet)
    assert found.epsilon <= 8.0
    assert found.epsilon_without_assumption <= found.epsilon <= found.largest


def adam(material):
    """Several steps of Adam a round, with a batch of a third: sums are hidden behind both."""
    config = configuration(material)
    training = {"optimizer": "adam", "learning_rate": 0.02, "sampling_rate": 0.3, "local_steps": 8}
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def of(config, count=100):
    return open_sandbox(config, count, RandomStream.seeded(1))


@pytest.fixture
def no_gradients(monkeypatch):
    """Leave the backward pass out: the true gradient is a billionth of what is planted."""

    def nothing(parameters, losses):
        with torch.no_grad():
            losses()
        return [torch.zeros(1, *parameter.shape) for parameter in parameters]

    monkeypatch.setattr(canaries, "gradients_of", lambda model: nothing)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "share"), [("sgd", 0.0), ("adam", 0.0), ("sgd", 0.1)])
@pytest.mark.usefixtures("no_gradients")
def test_too_little_noise_is_refuted_by_as_many_canaries_as_it_takes(
    material, monkeypatch, optimizer, share
):
    right = dpsgd.gaussian_noise
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda *asked: share * right(*asked))
    box = of(adam(material) if optimizer == "adam" else configuration(material))
    found = white_box(box, None, 0.975, RandomStream.seeded(2), quiet)
    assert found.epsilon > 8.0
    assert found.largest > 8.0
    assert found.canaries >= found.needed


def test_canaries_beyond_the_adapters_values_have_trainings_of_their_own(material, monkeypatch):
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))
    config = configuration(material)
    small = config.model_copy(update={"lora": config.lora.model_copy(update={"rank": 0})})
    box = of(small)
    assert box.model.manifest.length < 100
    found = white_box(box, 200, 0.95, RandomStream.seeded(2), quiet)
    assert found.canaries >= 200
    assert found.right == found.guesses


@pytest.mark.usefixtures("no_gradients")
def test_halves_that_take_turns_are_both_looked_at(material, monkeypatch):
    """Without noise each round tells of each canary as much as any other round."""
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))
    config = configuration(material)
    lora = config.lora.model_copy(update={"method": "rolora"})
    rounds = config.rounds.model_copy(update={"count": 4})
    box = of(config.model_copy(update={"lora": lora, "rounds": rounds}))
    groups = groups_of(box, "white-box", 50, 0.95)
    scores, coins = _white_box(box, groups, RandomStream.seeded(2), quiet)
    told = 4 * 0.5 / groups.settings.noise_multiplier**2
    np.testing.assert_allclose(scores[0], np.where(coins, told, -told), rtol=1e-3)


@pytest.mark.slow
def test_loss_canaries_refute_a_language_model_without_noise(material, monkeypatch):
    monkeypatch.setattr(dpsgd, "gaussian_noise", lambda stream, count, deviation: np.zeros(count))
    config = material.config(
        "llama",
        rounds={"count": 6, "min_sites": 2},
        training={
            "local_steps": 4,
            "sampling_rate": 1.0,
            "optimizer": "adam",
            "learning_rate": 0.02,
            "microbatch_size": 256,
        },
        privacy={"epsilon": 8.0},
    )
    found = black_box(of(config, 20), 150, 0.975, RandomStream.seeded(2), quiet)
    assert found.epsilon > 4.0


@pytest.mark.parametrize(
    ("kind", "task"), [("bert", None), ("llama", None), ("bert", "token_classification")]
)
def test_each_canary_has_tokens_of_its_own(material, kind, task):
    box = of(material.config(kind, task), 5)
    stream = RandomStream.seeded(4)
    made = box.encode([box.made_up_record(stream, 3) for _ in range(12)])
    new = with_new_tokens(made, box.model.tokenizer, stream)
    special = [t for t in box.model.tokenizer.all_special_ids]
    unknown = box.model.tokenizer.unk_token_id
    # The made-up words are unknown to this tokenizer, and so all the same token.
    changed = (made.tokens == unknown) | ~np.isin(made.tokens, special)
    np.testing.assert_array_equal(new.tokens[~changed], made.tokens[~changed])
    assert not np.isin(new.tokens[changed], special).any()
    # 60 words in the vocabulary: none comes again before all have been used.
    first = new.tokens[changed][:60]
    assert len(set(first.tolist())) == len(first)
    some = chosen(new, np.array([7, 2]))
    assert len(some) == some.number_of_units == 2
    batch, whole = some.batch(np.arange(2)), new.batch(np.array([7, 2]))
    assert all(torch.equal(batch[name], whole[name]) for name in whole)


@pytest.mark.usefixtures("no_gradients")
def test_without_clipping_the_claim_is_refuted(sandbox, monkeypatch):
    from fedllm.training import local

    monkeypatch.setattr(local, "clipped", lambda gradient, norm: clipped(gradient, 1e9))
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
    planted = PlantedGradients(model, Places([coordinates]), coins, 2.0)

    def gradient(place):
        batch = dataset.batch(np.array([place]))
        with planted.listening(), per_sample_hooks(model.module, model.row_layers):
            return added_up(planted(model.trained, lambda: record_losses(model, batch)))

    for place, coin in enumerate(coins):
        found, right = clipped(gradient(place), 1.0), np.zeros(model.manifest.length)
        right[coordinates[place]] = coin
        np.testing.assert_allclose(found.values, right, atol=1e-6)
        assert found.norm == pytest.approx(2.0 * coin, abs=1e-6)


@pytest.mark.parametrize("task", ["causal", "preference"])
def test_canaries_are_planted_whatever_part_of_the_network_gives_the_loss(task, tiny_model):
    """Tokens' losses are taken without a call of the whole network: the attack saw nothing once."""
    from fedllm.training.local import watched

    model = tiny_model("llama", task)
    tasks = task_of(model)
    made = tasks.made_up(lambda n: " ".join(["card"] * n), RandomStream.seeded(1), ())
    dataset = CanaryDataset(tasks.encode([made] * 4, model.tokenizer, 16), np.ones(4, dtype=bool))
    places = np.array([3, 5, 8, 13])
    planted = PlantedGradients(model, Places([places]), dataset.coins, 2.0)
    for index in range(4):
        rows = np.array([index])
        with planted.listening(), watched(model, activation_checkpointing=False):
            batch = model.attach(dataset, rows, dataset.batch(rows))
            gradient = added_up(planted(model.trained, lambda b=batch: record_losses(model, b)))
        assert np.flatnonzero(gradient > 1.0).tolist() == [places[index]]


def test_coins_do_not_change_what_sampling_sees(sandbox):
    short = sandbox.made_up_record(RandomStream.seeded(5))
    inner = sandbox.encode([short] * 10)
    heads, tails = (CanaryDataset(inner, np.full(10, side)) for side in (True, False))
    assert heads.number_of_units == tails.number_of_units == 10
    assert torch.equal(heads.batch(np.arange(4))["canary"], torch.arange(4))


@pytest.mark.slow
def test_loss_canaries_are_found_in_a_model_that_learnt_them_by_heart(material, monkeypatch):
    # The random model's tokenizer knows no other words.
    rows = iter(made_up(200, "canaries", lambda i: None))
    monkeypatch.setattr(Sandbox, "made_up_record", lambda *a, **k: next(rows))
    config = configuration(material, epsilon=None).model_copy(
        update={
            "training": configuration(material).training.model_copy(
                update={"learning_rate": 0.03, "optimizer": "adam", "local_steps": 20}
            )
        }
    )
    sandbox = Sandbox(config, load_model(config, LABELS), [])
    found = black_box(sandbox, 75, 0.95, RandomStream.seeded(3), quiet)
    assert found.kind == "black-box"
    # About 1.9, of 4.7 that so many can show.
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
    kept = load(folder, "canaries", CanaryResult)
    assert kept is not None
    assert kept.made.startswith("20")
    assert list(kept.of) == ["run.toml"]
    assert kept.model_copy(update={"made": "", "of": None}) == printed
    assert not {"made", "of"} & json.loads(out.stdout).keys()
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


@pytest.mark.parametrize(("largest", "needed"), [(6.1, 1500), (6.1, None), (9.0, 100)])
def test_what_so_few_canaries_cannot_show_is_said(material, tmp_path, monkeypatch, largest, needed):
    from fedllm.audit.attacks import run as attacks

    attack = CanaryAttack(
        kind="white-box",
        canaries=300,
        guesses=300,
        right=150,
        epsilon=0.0,
        epsilon_without_assumption=0.0,
        confidence=0.95,
        largest=largest,
        needed=needed,
    )
    result = CanaryResult(claimed=8.0, recomputed=8.0, delta=1e-5, attacks=(attack,))
    monkeypatch.setattr(attacks, "run_canaries", lambda *a: result)
    (tmp_path / "run.toml").write_text(to_toml(configuration(material)))
    out = CliRunner().invoke(app, ["canaries", str(tmp_path / "run.toml")])
    assert out.exit_code == 0
    assert f"an epsilon of about {largest:g} at most" in out.stdout
    assert ("too few to refute" in out.stdout) == (largest < 8)
    assert ("--canaries 1500" in out.stdout) == (needed == 1500)


def test_damaged_results_are_named(tmp_path):
    assert load(tmp_path, "canaries", CanaryResult) is None
    path = save(
        tmp_path, "canaries", CanaryResult(claimed=None, recomputed=None, delta=1e-5, attacks=())
    )
    path.write_text("{}")
    with pytest.raises(FedllmError, match="fedllm audit canaries"):
        load(tmp_path, "canaries", CanaryResult)
