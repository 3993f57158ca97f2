"""Whole runs on preferences: under every mechanism, from an earlier run's adapter, and resumed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.federation import WORDS, small_config

from fedllm.adapters import adapter_of
from fedllm.audit.ledgers.epsilon import audit_ledgers, find_ledgers
from fedllm.config import load_run_config
from fedllm.randomness import RandomStream
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.metrics import read_reports
from fedllm.runs.names import METRICS
from fedllm.runs.terminal import PlainObserver
from fedllm.serving.released import load_released
from fedllm_server.simulation import simulate

SHARED = {"noise": "distributed"}
ONE_STEP = {
    "local_steps": 1,
    "optimizer": "sgd",
    "sampling_rate": 0.5,
    "learning_rate": 1.0,
    "batch_size": 10,
}
WAYS = {
    "none": ({"epsilon": None}, {}, {"scheme": "none"}),
    "local": ({"epsilon": 6.0}, {}, {"scheme": "bfv"}),
    "moving": ({"epsilon": 6.0, "clipping_quantile": 0.5}, {}, {"scheme": "none"}),
    "shared": ({"epsilon": 6.0} | SHARED, ONE_STEP, {"scheme": "bfv"}),
    "discrete": (
        {"epsilon": 6.0, "distribution": "discrete_gaussian"} | SHARED,
        ONE_STEP,
        {"scheme": "bfv"},
    ),
    "sites": ({"epsilon": 6.0, "unit": "site"}, {}, {"scheme": "bfv"}),
}


def rows(count, seed=0):
    """Rows of events, in which the answer with more of some words is preferred."""
    stream = RandomStream.seeded(seed, "preferences")

    def words(number):
        return [WORDS[j] for j in stream.below(len(WORDS), number)]

    found = []
    for event in range(count):
        answers = sorted((words(4) for _ in range(3)), key=lambda a: -a.count("card"))
        prompt = " ".join([*words(2), str(event)])
        for better, worse in ((0, 1), (0, 2)):
            if answers[better] != answers[worse]:
                pair = {"chosen": " ".join(answers[better]), "rejected": " ".join(answers[worse])}
                found.append({"prompt": prompt, **pair})
    return found


@pytest.fixture
def config_of(tiny_checkpoint, tmp_path):
    for name, count, seed in (("train", 30, 0), ("test", 10, 9)):
        text = "".join(f"{json.dumps(row)}\n" for row in rows(count, seed))
        (tmp_path / f"{name}.jsonl").write_text(text)

    def make(kind="llama", objective="dpo", **sections):
        merged = {"data": {}, "lora": {}, "model": {}, **sections}
        data = {"train": str(tmp_path / "train.jsonl"), "test": str(tmp_path / "test.jsonl")}
        return small_config(
            tiny_checkpoint(kind),
            **{
                **merged,
                "task": "preference",
                "preference": {"objective": objective},
                "model": {"max_length": 24, **merged["model"]},
                "data": {"labels": None, **data, **merged["data"]},
            },
        )

    return make


def instruction_run(config_of, tmp_path, rounds=1):
    """What a run on answers to prompts released."""
    path = tmp_path / "taught.jsonl"
    path.write_text(
        "".join(
            f"{json.dumps({'prompt': row['prompt'], 'response': row['chosen']})}\n"
            for row in rows(30)
        )
    )
    config = config_of(
        rounds={"count": rounds},
        data={"train": str(path), "test": None},
        training={"learning_rate": 0.1},
    )
    from fedllm.config import PreferenceSection, RunConfig

    values = config.model_dump() | {"task": "instruction", "preference": PreferenceSection()}
    simulate(RunConfig.model_validate(values), tmp_path / "taught", observers=[])
    return tmp_path / "taught"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "objective", "rank"),
    [("llama", "dpo", 2), ("bert", "reward", 2), ("bert", "reward", 0), ("llama", "reward", 2)],
)
def test_every_mechanism_learns_preferences(way, kind, objective, rank, config_of, tmp_path):
    privacy, training, encryption = WAYS[way]
    config = config_of(
        kind,
        objective,
        lora={"rank": rank},
        privacy=privacy,
        training={"learning_rate": 0.05, **training},
        encryption=encryption,
        rounds={"count": 2, "min_sites": 3},
    )
    summary = simulate(config, tmp_path / "run", observers=[])
    first, *_, last = read_reports(tmp_path / "run" / METRICS)
    assert first.metrics["accuracy"] == 0.5
    assert first.metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert 0 <= last.metrics["accuracy_low"] <= last.metrics["accuracy_high"] <= 1
    assert last.metrics["loss"] != first.metrics["loss"]
    if privacy["epsilon"]:
        assert 0 < summary.privacy["epsilon"] <= 6.0
        found = audit_ledgers(find_ledgers([tmp_path / "run"])).findings
        assert not [f.text for f in found if f.severity != "note"]


@pytest.mark.slow
def test_events_are_evaluated_at_the_sites(config_of, tmp_path):
    config = config_of(
        "bert",
        "reward",
        lora={"rank": 0},
        privacy={"epsilon": 50.0},
        training={"learning_rate": 0.05},
        evaluation={"every": 2, "epsilon": 40.0},
        rounds={"count": 2, "min_sites": 3},
    )
    summary = simulate(config, tmp_path / "run", observers=[])
    assert 0 <= summary.site_metrics["accuracy"] <= 1


class StopAfterRound(PlainObserver):
    """Interrupts a run when the first site answers in its second round."""

    def site_answered(self, round: int, site: str, answered: int, sites: int) -> None:
        if (round, answered) == (2, 1):
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_compares_with_the_adapter_that_it_starts_from_also_when_resumed(config_of, tmp_path):
    """At its first round nothing is preferred yet: the earlier run's answers are its beginning."""
    start = instruction_run(config_of, tmp_path)
    config = config_of(
        model={"start": str(start)},
        privacy={"epsilon": 50.0},
        training={"learning_rate": 0.05},
        rounds={"count": 2},
    )
    whole = tmp_path / "whole"
    with pytest.raises(KeyboardInterrupt):
        simulate(config, whole, observers=[StopAfterRound()])
    # What it starts from need not be there any more.
    moved = tmp_path / "moved"
    start.rename(moved)
    simulate(config, whole, resume=True, observers=[])
    moved.rename(start)
    first, *_, last = read_reports(whole / METRICS)
    assert first.metrics["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert last.metrics["loss"] != pytest.approx(np.log(2), abs=1e-6)
    released, begun = load_released(whole), load_released(start)
    model = released.model
    # The start came with the adapter, and is the one that the run was given.
    np.testing.assert_array_equal(model.reference.values, begun.model.values(begun.model.tensors))
    assert np.any(model.reference.values != model.untrained(model.tensors))
    kept = load_checkpoint(whole / "checkpoints").adapter
    own = adapter_of(model).own.length
    np.testing.assert_array_equal(kept[own:], begun.adapter)
    assert len(load_run_config(whole / "run.toml").model.start)


def test_bad_sections_are_refused(config_of):
    from fedllm.errors import ConfigError

    with pytest.raises(ConfigError, match="preference says how preferences are learned"):
        small_config("m", preference={"beta": 2.0})
    with pytest.raises(ConfigError, match="nothing to train"):
        config_of(lora={"rank": 0})
    with pytest.raises(ConfigError, match="gives whole texts no label"):
        config_of("bert", "reward", model={"head_start": "label_names", "max_length": 24})
