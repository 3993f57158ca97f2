"""What a site gains, from the command line: at all sites of a simulation, and at one with a kit."""

from __future__ import annotations

import json
import shutil

import pytest
from support.federation import records, small_config, write_jsonl
from support.kits import make_federation
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError, DataError
from fedllm.identity.kits import read_kit
from fedllm.personal import own_layer
from fedllm.personal.sealed import open_own_layer
from fedllm.serving.released import load_released
from fedllm_server.simulation import simulate

PRIVATE = "Zebediah Quux has the plague"


@pytest.fixture(scope="module")
def place(tiny_checkpoint, tmp_path_factory):
    """A simulated run that held records back, and one that did not."""
    folder = tmp_path_factory.mktemp("runs")
    train = write_jsonl(folder / "train.jsonl", records(120))
    test = write_jsonl(folder / "test.jsonl", records(12, seed=9))
    data = {"train": str(train), "test": str(test), "labels": None, "sites": 2}
    for name, every in (("held", 2), ("seen", 0)):
        config = small_config(
            tiny_checkpoint("bert"),
            data=data,
            lora={"rank": 0},
            rounds={"count": 2, "min_sites": 2},
            evaluation={"every": every, "epsilon": 0.5, "holdout": 0.25},
            privacy={"epsilon": 4.0},
        )
        simulate(config, folder / name, observers=[])
    return folder


@pytest.fixture
def kit(tmp_path):
    make_federation(tmp_path / "fed")
    return shutil.move(tmp_path / "fed" / "kits" / "anne", tmp_path / "anne")


@pytest.fixture
def policy(tmp_path, tiny_checkpoint):
    rows = [dict(row.values) for row in records(60, seed=4)]
    rows = [{**row, "text": f"{PRIVATE} {row['text']}"} for row in rows]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "site.toml"
    path.write_text(f'[data]\ntrain = "own.jsonl"\n[model]\npath = "{tiny_checkpoint("bert")}"\n')
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_every_site_of_a_simulation_is_compared(place):
    done = run("benefit", place / "held", "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert [site["site"] for site in found["sites"]] == ["site-00", "site-01"]
    assert found["measure"] == "accuracy"
    trained = sum(site["trained"] + site["held_out"] for site in found["sites"])
    assert trained == 120
    assert all(0 <= site[key] <= 1 for site in found["sites"] for key in ("alone", "shared", "own"))
    shown = run("benefit", place / "held")
    assert "least at site-0" in shown.stdout
    assert "on the mean of 2 sites" in shown.stdout


def test_a_run_that_held_nothing_back_compares_nothing(place):
    done = run("benefit", place / "seen")
    assert isinstance(done.exception, ConfigError)
    assert "held no records back" in done.exception.message
    assert "evaluation.every" in done.exception.remedy


def test_a_site_makes_a_layer_that_it_alone_can_open(place, kit, policy, tiny_checkpoint):
    arguments = ["client", "personalise", place / "held", "--kit", kit, "--policy", policy]
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.exception
    found = json.loads(done.stdout)
    assert [site["site"] for site in found["benefit"]["sites"]] == ["anne"]
    (sealed,) = (kit / "state" / "own").iterdir()
    assert found["layer"] == str(sealed)
    assert PRIVATE.encode() not in sealed.read_bytes()
    assert PRIVATE not in done.output
    released = load_released(place / "held", str(tiny_checkpoint("bert")))
    identity = read_kit(kit, "site").identity
    layer = open_own_layer(sealed, identity, released.model, str(released.about["adapter"]))
    assert layer.epochs == found["epochs"]
    assert "nothing was sent" in run(*arguments).stdout


def test_a_site_asks_the_model_with_its_own_layer_on_top(place, kit, policy, monkeypatch):
    # Left to itself it may find that no layer is best.
    monkeypatch.setattr(own_layer, "_FEWEST_UNITS", 1)
    monkeypatch.setattr(own_layer._Training, "_chosen", lambda self, keep: (3, 1.0))
    done = run("client", "personalise", place / "seen", "--kit", kit, "--policy", policy)
    assert done.exit_code == 0, done.exception
    text = ["predict", place / "seen", "--text", "my card is lost", "--top", 0]
    shared = json.loads(run(*text).stdout)
    own = json.loads(run(*text, "--kit", kit).stdout)
    assert shared["labels"] != own["labels"]
    assert {one["label"] for one in own["labels"]} == {one["label"] for one in shared["labels"]}
    done = run("predict", place / "held" / "adapter", "--text", "a", "--kit", place / "held")
    assert isinstance(done.exception, ConfigError)


def test_a_layer_is_made_without_a_comparison_too(place, kit, policy):
    done = run("client", "personalise", place / "seen", "--kit", kit, "--policy", policy)
    assert done.exit_code == 0, done.exception
    assert "nothing to compare on" in done.stdout
    assert len(list((kit / "state" / "own").iterdir())) == 1


def test_too_few_records_are_told(place, kit, policy):
    own = policy.parent / "own.jsonl"
    own.write_text(own.read_text().splitlines(keepends=True)[0])
    done = run("client", "personalise", place / "held", "--kit", kit, "--policy", policy)
    assert isinstance(done.exception, DataError)
    assert "too few to compare" in done.exception.message


def test_a_policy_without_records_or_a_model_is_told(place, kit, policy):
    policy.write_text('[data]\ntrain = "own.jsonl"\n')
    done = run("client", "personalise", place / "held", "--kit", kit, "--policy", policy)
    assert isinstance(done.exception, ConfigError)
    assert "no section [data] or [model]" in done.exception.message
