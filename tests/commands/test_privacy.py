"""What ``fedllm privacy plan`` says beside its numbers."""

from __future__ import annotations

import json

import pytest
from support.federation import config_values
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands.assumptions import of_run
from fedllm.config import RunConfig, parse, to_toml
from fedllm.errors import ConfigError

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


def test_a_run_that_sites_refuse_since_its_charges_may_be_chosen_is_told():
    rare = ("--records", "500000", "--batch", "1", "--steps", "1", "--epsilon", "7.9")
    assert "chooses each charge by what it has seen" in plan(*rare, "--rounds", "9")
    for usual in (("--records", "5000", "--epsilon", "8"), ("--records", "300", "--epsilon", "1")):
        assert "chooses each charge" not in plan(*usual, "--rounds", "20")
    assert "chooses each charge" not in plan(*rare, "--rounds", "9", "--json")


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


def run_toml(folder, **sections) -> str:
    path = folder / "run.toml"
    path.write_text(to_toml(parse(RunConfig, config_values("base", **sections), "test")))
    return str(path)


def assumed(*arguments: str) -> list[str]:
    """What the plan assumes: the same in the text and with each row of the JSON."""
    rows = json.loads(plan(*arguments, "--json"))
    (words,) = {tuple(row["assumptions"]) for row in rows}
    said = plan(*arguments)
    for one in words:
        assert f"- {one}" in said
    return list(words)


def test_numbers_of_records_that_nobody_gave_are_named_as_assumed(tmp_path):
    run = run_toml(tmp_path, privacy={"epsilon": 3.0})
    sizes, repeats, rate, one_site = assumed(run)
    assert sizes.startswith("a site holds 300, 1000 records (assumed")
    assert "change it with --records" in sizes
    assert "300 as " in sizes
    assert "repeated" in repeats
    assert rate.startswith("delta is 1e-05")
    assert one_site.startswith("a record is at one site alone")
    assert assumed(run, "--records", "77")[0].startswith("a site holds 77 records (given")


def test_shared_noise_names_whose_shares_it_counts_on_and_what_colluders_see(tmp_path):
    values = {**SHARED, "rounds": {"count": 4, "min_sites": 3, "sites": 3}}
    privacy = {"epsilon": 8.0, "noise": "distributed", "colluders": 1}
    words = assumed(run_toml(tmp_path, privacy=privacy, evaluation={"every": 2}, **values))
    assert "a site is in all 4 rounds" in words[1]
    shares, colluders, evaluations, one_site = words[4:]
    assert "at several" in one_site
    assert shares == (
        "2 sites add their shares of the noise: rounds.min_sites = 3 less privacy.colluders = 1"
    )
    assert "budget.colluders_epsilon" in colluders
    assert evaluations.startswith("2 evaluations")


def test_options_that_were_not_given_are_named(tmp_path):
    taken, *_ = assumed("--epsilon", "3", "--rounds", "1")
    assert taken.startswith(
        "not given, and taken as --delta 1e-05, --records 300,1000, --batch 64, --steps 10:"
    )
    given = ["--epsilon", "3", "--rounds", "1", "--delta", "1e-6"]
    given += ["--records", "300", "--batch", "30", "--steps", "1"]
    assert "not given" not in " ".join(assumed(*given))
    assert "--epsilon" not in assumed("--noise", "1.5", "--rounds", "1")[0]


def planned(*arguments: str) -> list[dict]:
    done = CliRunner().invoke(app, ["privacy", "plan", "--quality", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_more_records_and_a_larger_epsilon_keep_more_of_the_gain():
    def kept(records: str, epsilon: str) -> float:
        found = planned("--records", records, "--epsilon", epsilon, "--rounds", "50")
        return found[0]["quality"]["kept"]

    assert kept("200", "1") < kept("200", "8") < kept("2000", "8")


def test_what_is_recommended_is_the_best_of_the_lengths():
    found = planned("--records", "500", "--epsilon", "3", "--sites", "8")
    best = max(found, key=lambda row: row["quality"]["kept"])
    recommended = found[0]["recommended"]
    assert recommended["rounds.count"] == best["rounds"]
    assert recommended["rounds.min_sites"] == 8 and recommended["training.batch_size"] == 200
    assert found[0]["quality"]["law"]["runs"] > 0


def test_a_prediction_says_what_it_is():
    said = plan("--quality", "--records", "500", "--rounds", "50")
    assert "A guide and no promise, fitted on" in said and "privacy.noise = distributed" in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"task": "instruction"}, "was fitted on runs of"), ({"epsilon": None}, "no noise")],
)
def test_a_run_that_no_law_was_fitted_on_is_refused(tmp_path, changes, words):
    values = {
        "name": "x",
        "task": changes.get("task", "classification"),
        "model": {"path": "m"},
        "data": {"train": "t"},
        "privacy": {"epsilon": changes.get("epsilon", 8.0)},
    }
    path = tmp_path / "run.toml"
    path.write_text(to_toml(parse(RunConfig, values, "test")))
    done = CliRunner().invoke(app, ["privacy", "plan", str(path), "--quality"])
    assert isinstance(done.exception, ConfigError) and words in done.exception.message
    for option in ("--batch", "--steps", "--noise"):
        done = CliRunner().invoke(app, ["privacy", "plan", "--quality", option, "3"])
        assert isinstance(done.exception, ConfigError) and option in done.exception.message


def test_a_plan_says_how_many_held_out_units_a_label_needs():
    def told(**evaluation):
        values = {
            "name": "x",
            "task": "classification",
            "model": {"path": "m"},
            "data": {"train": "t", "sites": 4},
            "rounds": {"count": 3, "min_sites": 4},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "noise": "local"},
            "evaluation": {"every": 3, "epsilon": 0.5, **evaluation},
        }
        return " ".join(of_run(parse(RunConfig, values, "test"), [300], True))

    # Noise 7.03 for one evaluation, sqrt(6) for two blocks of three, sqrt(4) for as many sites.
    assert "4 sites together hold out fewer than about 344 records is not told of" in told(
        parts="label"
    )
    assert "not told of" not in told()


@pytest.mark.parametrize("option", ["--records", "--rounds", "--noise", "--batch", "--steps"])
def test_a_number_of_four_hundred_digits_is_refused_in_words(option):
    done = CliRunner().invoke(app, ["privacy", "plan", option, "1" + "0" * 400])
    assert isinstance(done.exception, ConfigError), done.exception
    assert option in done.exception.message
    assert len(done.exception.message) < 200
