"""From a file to a folder that other commands take for a run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.alignment_models import configuration, texts
from support.serving_runs import make_run
from typer.testing import CliRunner

from fedllm.alignment.run import run_alignment
from fedllm.cli import app
from fedllm.config import to_toml
from fedllm.errors import CheckpointError, ConfigError, RefusedError
from fedllm.exporting.export import export
from fedllm.models.generation import Writing
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.lineage import ancestors, spent_together
from fedllm.runs.start import find_start
from fedllm.runs.summary import read_summary
from fedllm.serving.usable import open_usable


def quiet(progress: Any) -> None:
    """Hear nothing."""


@pytest.fixture
def models(start, tiny_checkpoint, tmp_path) -> Path:
    """A folder with a run that answers, a reward model, a judge, and prompts."""
    shutil.copytree(start(), tmp_path / "start")
    for name in ("reward", "judge"):
        learned = {"preference": {"objective": "reward"}, "model": {"max_length": 32}}
        make_run(tiny_checkpoint("llama"), tmp_path, "preference", name, **learned)
    rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts(30))
    (tmp_path / "prompts.jsonl").write_text(rows)
    return tmp_path


def asked(models: Path, **sections: Any):
    places = {
        "model": {"start": str(models / "start")},
        "reward": {"run": str(models / "reward"), "judge": str(models / "judge")},
        "training": {"steps": 2, "prompts": 2},
        "selection": {"every": 1},
    }
    merged = {name: {**places.get(name, {}), **sections.get(name, {})} for name in places}
    prompts = {"file": str(models / "prompts.jsonl"), **sections.pop("prompts", {})}
    rest = {name: value for name, value in sections.items() if name not in places}
    return configuration(prompts=prompts, **{**rest, **merged})


def epsilons(folder: Path, **told: float | None) -> None:
    """Give a run's records an epsilon."""
    path = folder / "summary.json"
    values = json.loads(path.read_text())
    values["run"], values["run_id"] = folder.name, folder.name.ljust(16, "0")
    values["privacy"] |= {"unit": "record", **told}
    path.write_text(json.dumps(values))


def test_the_folder_is_used_like_a_runs(models):
    epsilons(models / "start", epsilon=3.0)
    epsilons(models / "reward", epsilon=4.0)
    epsilons(models / "judge", epsilon=5.0)
    out = models / "out"
    summary = run_alignment(asked(models), "grpo", out, resume=False, told=quiet)
    assert summary == read_summary(out)
    assert {"align.toml", "run.toml", "metrics.jsonl", "adapter"} <= {p.name for p in out.iterdir()}
    assert summary.rounds == 2
    assert summary.alignment["reward"]["run"] == "reward"
    assert summary.alignment["judge"]["epsilon"] == 5.0
    assert summary.privacy["epsilon"] == 0.0
    assert summary.alignment["prompts"]["learning"] == 14
    # It answers, is handed over, and begins another run; of itself it tells of nobody.
    usable = open_usable(out)
    adapter = usable.released.model.adapter()
    assert summary.adapter_sha256 in (out / "adapter/README.md").read_text()
    assert usable.require_generator().write([usable.prompt("my card", 4).ids], Writing(4))
    written = export(out, models / "exported", "peft")
    assert written.largest < 1e-5
    about = find_start(str(out)).about
    assert [one.run for one in ancestors(about)] == ["aligned", "start", "reward", "judge"]
    assert spent_together(ancestors(about), "record") == 12.0
    kept = summary.alignment["kept_step"]
    start = open_usable(models / "start").released.model.adapter()
    assert np.array_equal(adapter, start) == (kept == 0)
    # Once more changes nothing.
    assert run_alignment(asked(models), "grpo", out, resume=True, told=quiet) == summary


@pytest.mark.slow
def test_the_card_says_what_it_is_made_of(models):
    epsilons(models / "start", epsilon=3.0)
    epsilons(models / "reward", epsilon=4.0)
    config = asked(models, reward={"judge": None})
    run_alignment(config, "ppo", models / "out", resume=False, told=quiet)
    card = (models / "out/adapter/README.md").read_text()
    for words in (
        "the model of the run `start` was taught by the reward model of the run `reward`",
        "with proximal policy optimisation, on public prompts",
        f"| `start` | {epsilon_text(3.0)} |",
        f"| `reward` | {epsilon_text(4.0)} |",
        f"a record that took part in all of them spent at most epsilon {epsilon_text(7.0)}",
        "is no independent measure",
        "Nothing private was read to align this model, and nothing was charged",
        "public prompts learned with: 14",
        "started from: `start, reward`",
    ):
        assert words in card, words
    for words in ("by federated training", "Critical", "`judge`"):
        assert words not in card, words
    # An ancestor without a bound takes it from the whole.
    epsilons(models / "reward", epsilon=None)
    run_alignment(config, "ppo", models / "other", resume=False, told=quiet)
    card = (models / "other/adapter/README.md").read_text()
    assert "NONE: not all of these have an epsilon" in card
    assert "differential-privacy" not in card


@pytest.mark.slow
def test_other_commands_say_that_nobody_trained_in_it(models):
    run_alignment(asked(models), "grpo", models / "out", resume=False, told=quiet)
    out = str(models / "out")
    for command in (["audit", "report", out], ["audit", "extraction", out], ["benefit", out]):
        done = CliRunner().invoke(app, command)
        assert isinstance(done.exception, ConfigError), command
        assert "aligned on public prompts" in done.exception.message
        assert done.exception.remedy.endswith("began with, start")


def test_the_command(models):
    epsilons(models / "start", epsilon=3.0)
    epsilons(models / "reward", epsilon=None)
    (models / "rankings.jsonl").write_text('{"prompt": ""}\n')
    run = models / "reward/run.toml"
    run.write_text(run.read_text().replace("unused.jsonl", f"{models}/rankings.jsonl"))
    path = models / "align.toml"
    path.write_text(to_toml(asked(models)).replace(f"{models}/", ""))
    arguments = ["align", "grpo", str(path), "--out", str(models / "out")]
    done = CliRunner().invoke(app, [*arguments, "--set", "training.steps=1"])
    assert done.exit_code == 0, done.output
    assert "nothing is charged, as the prompts are taken for public" in done.stdout
    assert "by judge" in done.stdout
    assert "step 1/1" in done.stderr
    again = CliRunner().invoke(app, [*arguments, "--set", "training.steps=1", "--resume", "--json"])
    told = json.loads(again.stdout)
    assert told["alignment"]["algorithm"] == "grpo"
    # 0 would pass for a bound of all that it is made of.
    assert told["privacy"]["epsilon"] is None
    assert find_start(str(models / "out")).about["epsilon"] is None
    # The reward model's records lie here, and a row of theirs cannot be read.
    assert told["alignment"]["prompts"]["not_compared"] == ["reward"]
    for said in (done.stdout, done.stderr):
        assert "not compared with the records of reward" in said
    # What is finished is not handed out for something else.
    for algorithm, key in (("grpo", "training.steps=2"), ("ppo", "training.steps=1")):
        other = CliRunner().invoke(
            app, ["align", algorithm, *arguments[2:], "--set", key, "--resume"]
        )
        assert isinstance(other.exception, ConfigError), key
        differs = "algorithm" if algorithm == "ppo" else "training.steps"
        assert other.exception.message.endswith(f"given now: {differs}")
    own = (models / "prompts.jsonl").read_text()
    (models / "prompts.jsonl").write_text(own.replace("}", ', "chosen": "a"}'))
    other = CliRunner().invoke(app, [*arguments, "--set", "training.steps=1", "--resume"])
    assert isinstance(other.exception, RefusedError)
    (models / "prompts.jsonl").write_text(own)
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "is not empty" in refused.exception.message
    refused = CliRunner().invoke(app, [*arguments[:-1], str(models / "none"), "--resume"])
    assert "no alignment to resume" in refused.exception.message
    assert not (models / "none").exists()


def test_what_does_not_fit_is_refused(models, tiny_checkpoint):
    def refused(error, words: str, **sections: Any) -> None:
        with pytest.raises(error, match=words):
            run_alignment(asked(models, **sections), "grpo", models / "x", resume=False, told=quiet)
        assert not (models / "x/summary.json").exists()

    refused(ConfigError, "no independent measure", reward={"judge": str(models / "reward")})
    refused(ConfigError, "holds no reward model", reward={"run": str(models / "start")})
    refused(ConfigError, "writes none", model={"start": str(models / "reward")})
    refused(ConfigError, "there is no folder", model={"start": str(models / "nowhere")})
    shutil.copytree(models / "start/adapter", models / "alone")
    refused(
        ConfigError, "lies in no folder of a finished run", model={"start": str(models / "alone")}
    )
    about = models / "reward/adapter/shared_model.json"
    values = json.loads(about.read_text())
    about.write_text(json.dumps({**values, "base_fingerprint": "0" * 64}))
    gone = "name the folder of the base model that the run used with reward.base"
    refused(
        CheckpointError,
        f"of another base model(.|\n)*{gone}",
        reward={"run": str(models / "reward")},
    )


def test_prompts_that_are_records_are_refused_before_anything_is_written(models):
    rows = "".join(json.dumps({"prompt": t, "chosen": "a"}) + "\n" for t in texts(30))
    (models / "prompts.jsonl").write_text(rows)
    with pytest.raises(RefusedError, match="records, and not prompts alone"):
        run_alignment(asked(models), "grpo", models / "out", resume=False, told=quiet)
    assert not (models / "out/align.toml").exists()


@pytest.mark.slow
def test_a_model_that_learned_preferences_is_aligned_too(models, tiny_checkpoint):
    learned = {"preference": {"objective": "dpo"}, "model": {"max_length": 32}}
    folder = make_run(tiny_checkpoint("llama"), models, "preference", "preferring", **learned)
    config = asked(models, model={"start": str(folder)})
    summary = run_alignment(config, "ppo", models / "out", resume=False, told=quiet)
    assert summary.task == "preference"
    usable = open_usable(models / "out")
    assert usable.require_generator().write([usable.prompt("my card", 4).ids], Writing(4))
