"""Several run folders at once: which there are, and in what they differ."""

from __future__ import annotations

import json

import pytest
from support.run_folder import run_config, write_run
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError
from fedllm.runs import names
from fedllm.runs.shelf import compare, listed


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "a")
    other = {
        "data": {"train": "postgresql://ward:secret@host/db"},
        "rounds": {"count": 9},
        "seed": 7,
        "name": "other",
    }
    write_run(tmp_path / "deep" / "b", run_config(**other))
    return tmp_path


def test_runs_are_found_in_folders_and_none_within_a_run(runs):
    write_run(runs / "a" / "inner")
    found = listed([runs, runs / "a"])
    assert [one.folder for one in found] == [runs / "a", runs / "deep" / "b"]
    assert {one.state for one in found} == {"finished"}
    assert [one.rounds for one in found] == [5, 9]
    assert found[0].metrics["accuracy"] > 0.5
    assert found[0].private
    assert found[0].epsilon is not None


def test_what_is_deeper_than_three_levels_is_not_looked_for(tmp_path):
    write_run(tmp_path / "1" / "2" / "3" / "run")
    with pytest.raises(ConfigError, match="there is no run in"):
        listed([tmp_path])
    assert len(listed([tmp_path / "1"])) == 1


def test_a_run_that_is_damaged_hides_no_other(runs):
    (runs / "a" / names.RUN_TOML).write_text("name = ")
    (runs / "deep" / "b" / names.SUMMARY).unlink()
    first, second = listed([runs])
    assert first.state == "damaged"
    assert names.RUN_TOML in first.problem
    assert second.state == "begun"
    assert (second.done, second.rounds) == (5, 9)


def test_what_is_no_federated_run_is_named_as_what_it_is(tmp_path):
    for name, file in (("aligned", names.ALIGN_TOML), ("base", names.INPUTS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        (tmp_path / name / names.RUN_TOML).write_text("")
    found = listed([tmp_path])
    assert [one.kind for one in found] == ["alignment", "pretraining"]
    for one in found:
        with pytest.raises(ConfigError, match="other settings and figures"):
            compare([one.folder, tmp_path])


def test_settings_that_differ_are_told_without_a_password_and_no_others(runs):
    found = compare([runs / "a", runs / "deep" / "b"])
    # The recipe's step hangs on the number of rounds.
    assert set(found.settings) == {
        "data.train",
        "rounds.count",
        "rounds.learning_rate",
        "seed",
    }
    assert found.settings["rounds.count"] == (5, 9)
    assert "secret" not in json.dumps(found.settings)
    assert found.privacy["epsilon"] == (7.9321, 7.9321)
    assert found.metrics["accuracy"][0] is not None
    assert not any("chance" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"data": {"test": "other.jsonl"}}, "test files are not the same"),
        ({"data": {"unit": None}}, "of a record in one run and of a person in another"),
        ({"privacy": {"epsilon": None, "noise": "local"}}, "some of the runs are not private"),
        ({"rounds": {"count": 6}}, "may be chance"),
    ],
    ids=["test", "unit", "clear", "seed"],
)
def test_what_makes_figures_hard_to_compare_is_said(tmp_path, changes, note):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", run_config(**changes))
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert any(note in one for one in found.notes)


def test_one_run_is_compared_with_nothing(runs):
    for folders in ([runs / "a"], [runs / "a", runs / "a"]):
        with pytest.raises(ConfigError, match="nothing to be compared with"):
            compare(folders)


def test_both_commands_print_tables_of_eighty_columns_and_json(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(runs)
    for command in (["list", "."], ["compare", "a", "deep/b"]):
        done = CliRunner().invoke(app, ["runs", *command])
        assert done.exit_code == 0, done.output
        assert max(map(len, done.output.splitlines())) <= 90
        assert "secret" not in done.output
        assert "accuracy" in done.output
        plain = CliRunner().invoke(app, ["runs", *command, "--json"])
        assert json.loads(plain.output)
