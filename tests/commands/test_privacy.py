"""What ``fedllm privacy plan`` says beside its numbers."""

from __future__ import annotations

import json

import pytest
from support.federation import config_values
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.config import RunConfig, parse, to_toml

SHARED = {
    "training": {"local_steps": 1, "optimizer": "sgd", "sampling_rate": 0.1, "batch_size": 30},
    "rounds": {"count": 2, "min_sites": 3},
}


def plan(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["privacy", "plan", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


@pytest.mark.parametrize(
    ("noise", "beyond"), [("31", True), ("29", False), ("0.5,31", True), ("0.5,29", False)]
)
def test_noise_beyond_use_is_told(noise, beyond):
    said = plan("--records", "300", "--batch", "30", "--rounds", "1", "--noise", noise)
    assert ("beyond use" in said) is beyond


def test_an_epsilon_that_takes_noise_beyond_use_is_told():
    assert "beyond use" in plan("--epsilon", "1e-7", "--records", "300", "--rounds", "10")
    assert "beyond use" not in plan("--epsilon", "1", "--records", "300", "--rounds", "10")


@pytest.mark.parametrize(
    ("noise", "epsilon", "beyond"),
    [("local", 0.001, True), ("local", 1.0, False), ("distributed", 0.001, True)],
)
def test_a_run_whose_noise_is_beyond_use_is_told(tmp_path, noise, epsilon, beyond):
    values = config_values("base", privacy={"epsilon": epsilon, "noise": noise}, **SHARED)
    path = tmp_path / "run.toml"
    path.write_text(to_toml(parse(RunConfig, values, "test")))
    assert ("beyond use" in plan(str(path), "--records", "300")) is beyond
    assert "beyond use" not in plan(str(path), "--records", "300", "--json")


def test_shared_noise_is_held_against_all_sites_batches(tmp_path):
    values = config_values("base", privacy={"epsilon": 0.01, "noise": "distributed"}, **SHARED)
    path = tmp_path / "run.toml"
    path.write_text(to_toml(parse(RunConfig, values, "test")))
    (row,) = json.loads(plan(str(path), "--records", "300", "--json"))
    # One site's batch of 30 could not stand against it, three sites' batches can.
    assert 30 < row["noise_multiplier"] < 90
    assert "beyond use" not in plan(str(path), "--records", "300")
