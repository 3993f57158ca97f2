"""`fedllm rate`: what it refuses, and what comes of ratings."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.rating import ORIGIN, QUESTIONS, answers_to, lines
from support.serving_runs import released
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.errors import ConfigError, DataError
from fedllm.rating.answers import AnswerFile, Origin, Settings
from fedllm.rating.prompts import read_questions
from fedllm.rating.store import RatingLog
from fedllm.rating.which import model_at

__all__ = ["released"]
SECRET = "Zebediah"
SMALL = ("--max-new-tokens", 6, "--answers", 3)


def run(*arguments):
    return CliRunner().invoke(app, ["rate", *map(str, arguments)])


def refused(*arguments):
    done = run(*arguments)
    assert isinstance(done.exception, ConfigError), done.output
    assert done.exception.remedy
    return done.exception


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    found = [{"prompt": f"my card {SECRET}", "id": "a"}, {"prompt": "fee", "context": "card"}]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in found))
    return path


@pytest.fixture
def rated(tmp_path):
    """What two raters said of three prompts."""
    said = {"ann": [(1, 2, 3), (1, 2, 3), (1, 1, 1)], "bob": [(1, 2, 3), (3, 2, 1), (1, 2, 2)]}
    for rater, rankings in said.items():
        log = RatingLog(tmp_path / f"{rater}.jsonl", rater, ORIGIN, QUESTIONS)
        for question, ranks in zip(QUESTIONS, rankings, strict=True):
            log.add(question, answers_to(question), (0, 1, 2), "ranked", ranks)
    return [tmp_path / "ann.jsonl", tmp_path / "bob.jsonl"]


# --- what is asked for --------------------------------------------------------------------------


def test_it_must_be_clear_what_is_to_be_done(prompts, tmp_path):
    for arguments in (
        (),
        ("--model", tmp_path, "--disagreement"),
        ("--disagreement", "--export", "x"),
        ("--model", tmp_path, "--json"),
    ):
        assert "not clear" in refused(prompts, *arguments).message
    assert "for --export alone" in refused(prompts, "--disagreement", "--consensus").message
    assert "2 files" in refused(prompts, prompts, "--model", tmp_path).message


def test_it_needs_a_terminal_and_a_name(prompts, tmp_path):
    found = refused(prompts, "--model", tmp_path)
    assert "needs a terminal" in found.message
    assert "--browser" in found.remedy
    assert (
        "rater's name" in refused(prompts, "--model", tmp_path, "--browser", "--rater", "").message
    )


def test_where_all_answers_are_there_torch_is_not_imported(prompts, tmp_path):
    """As it takes many seconds, at each start."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "base" / "model.safetensors").touch()
    origin = Origin(model=model_at(tmp_path / "base"), sampling=Settings(answers=3, new_tokens=6))
    file = AnswerFile(tmp_path / "ratings.answers.jsonl", origin)
    for question in read_questions(str(prompts)):
        file.add(question, answers_to(question))
    given = ["rate", prompts, "--model", tmp_path / "base", *SMALL, "--prepare"]
    given += ["--out", tmp_path / "ratings.jsonl"]
    program = (
        "import sys; from fedllm.cli import app; app(sys.argv[1:], standalone_mode=False); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, given)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "answers to 2 prompts are there" in done.stdout


def test_wrong_prompts_are_told_before_the_model_is_looked_at(prompts, tmp_path):
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": ""}) + "\n")
    done = run(prompts, "--model", tmp_path / "none", "--prepare")
    assert isinstance(done.exception, DataError)
    assert "row 3" in done.exception.message
    assert SECRET not in done.output + str(done.exception)


# --- answers ------------------------------------------------------------------------------------


def test_answers_are_sampled_ahead_and_then_no_model_is_loaded(
    released, prompts, tmp_path, monkeypatch
):
    folder, out = released("llama", "instruction", model={"max_length": 120}), tmp_path / "r.jsonl"
    done = run(prompts, "--model", folder, "--out", out, "--prepare", *SMALL)
    assert done.exit_code == 0, done.exception
    assert "answers to 2 prompts are there" in done.stdout
    head, *answers = lines(tmp_path / "r.answers.jsonl")
    assert head["origin"]["sampling"]["answers"] == 3
    assert len(answers) == 2
    assert all(len(set(line["answers"])) == 3 for line in answers)
    assert all(text.strip() for line in answers for text in line["answers"])
    first = (tmp_path / "r.answers.jsonl").read_text()
    assert SECRET not in done.output
    monkeypatch.setattr("fedllm.commands.asking.opened", None)
    assert run(prompts, "--model", folder, "--out", out, "--prepare", *SMALL).exit_code == 0
    assert (tmp_path / "r.answers.jsonl").read_text() == first
    other = refused(prompts, "--model", folder, "--out", out, "--prepare", "--answers", 2)
    assert "--answers 3" in other.message


@pytest.mark.slow
def test_a_prompt_gets_the_same_answers_wherever_it_stands(released, prompts, tmp_path):
    folder = released("llama", "instruction", model={"max_length": 120})

    def answers(name, model, *more):
        out = tmp_path / f"{name}.jsonl"
        done = run(prompts, "--model", model, "--out", out, "--prepare", *SMALL, *more)
        assert done.exit_code == 0, done.exception
        found = lines(tmp_path / f"{name}.answers.jsonl")[1:]
        return {line["unit"]: line["answers"] for line in found}

    first = answers("one", folder)
    prompts.write_text("".join(reversed(prompts.read_text().splitlines(keepends=True))))
    assert answers("two", folder / "adapter", "--max-length", 120) == first
    assert answers("three", folder, "--seed", 1) != first
    base = answers("four", folder, "--temperature", 0.01)
    # Hardly any chance is left: such prompts are passed over.
    assert all(len(texts) <= 3 for texts in base.values())


def test_a_model_that_writes_nothing_is_refused(released, prompts, tmp_path):
    found = refused(prompts, "--model", released(), "--prepare", "--out", tmp_path / "r.jsonl")
    assert "writes none" in found.message


def test_one_rater_at_a_time(released, prompts, tmp_path):
    from fedllm.locks import exclusive

    out = tmp_path / "r.jsonl"
    with exclusive(out, "", ""):
        found = refused(prompts, "--model", tmp_path, "--out", out, "--prepare")
    assert "somebody rates into" in found.message
    # Two names of one stem have their answers in one file.
    with exclusive(tmp_path / "r.answers.jsonl", "", ""):
        found = refused(prompts, "--model", tmp_path, "--out", tmp_path / "r.txt", "--prepare")
    assert "somebody rates with the answers of" in found.message


# --- what comes of it ---------------------------------------------------------------------------


def test_disagreement_is_shown(rated):
    done = run(*rated, "--disagreement")
    assert done.exit_code == 0, done.exception
    assert "over 3 prompts" in done.stdout
    found = json.loads(run(*rated, "--disagreement", "--json").stdout)
    assert found["shared_prompts"] == 3
    most = found["prompts"][0]
    assert (most["row"], most["disagreement"]) == (2, 1.0)
    assert most["rankings"] == {"ann": "1 2 3", "bob": "3 2 1"}
    assert [one["name"] for one in found["raters"]] == ["ann", "bob"]
    assert found["interval"][0] <= found["alpha"] <= found["interval"][1]
    # Rows and identifiers, and no text of the site's.
    assert "measles" not in done.stdout + json.dumps(found)
    alone = run(rated[0], "--disagreement")
    assert "no agreement can be told" in alone.stdout


def test_a_preference_file_is_written(rated, tmp_path):
    out = tmp_path / "preferences.jsonl"
    done = run(*rated, "--export", out)
    assert done.exit_code == 0, done.exception
    rows = lines(out)
    assert [(row["rater"], row["ranks"]) for row in rows] == [
        ("ann", [1, 2, 3]),
        ("bob", [1, 2, 3]),
        ("ann", [1, 2, 3]),
        ("bob", [3, 2, 1]),
        ("bob", [1, 2, 2]),
    ]
    assert rows[0]["context"] == QUESTIONS[0].context
    assert rows[0]["answers"] == list(answers_to(QUESTIONS[0]).texts)
    assert "context" not in rows[2]
    assert out.stat().st_mode & 0o777 == 0o600
    assert "1 rankings in which all answers are equally good" in done.stdout
    told = json.loads(run(*rated, "--export", out, "--consensus", "--json").stdout)
    assert [row["ranks"] for row in lines(out)] == [[1, 2, 3], [1, 2, 2]]
    assert (told["rows"], told["prompts"], told["undecided"]) == (2, 3, 1)


def test_what_cannot_be_read_leaves_the_file_that_was_there(rated, tmp_path):
    out = tmp_path / "preferences.jsonl"
    out.write_text("before")
    rated[1].write_text("{}\n")
    assert "line 1" in refused(*rated, "--export", out).message
    assert "cannot be read" in refused(tmp_path / "none", "--export", out).message
    assert out.read_text() == "before"


@pytest.mark.parametrize("way", ["same", "hard", "link", "answers"])
def test_what_raters_said_is_not_written_over(way, rated, tmp_path):
    said, out = rated[1], tmp_path / "other.jsonl"
    if way == "same":
        out = said
    elif way == "answers":
        out = said.with_name("bob.answers.jsonl")
        out.write_text("kept")
    else:
        (out.hardlink_to if way == "hard" else out.symlink_to)(said)
    before = said.read_bytes(), out.read_bytes()
    error = refused(*rated, "--export", out)
    assert "would be lost" in error.message
    assert "--export" in error.remedy
    assert (said.read_bytes(), out.read_bytes()) == before
