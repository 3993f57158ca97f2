"""Files of prompts that are known to be a site's are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.alignment_models import configuration, texts
from support.rating import ORIGIN, QUESTIONS, answers_to, session

from fedllm.alignment.private_files import require_public
from fedllm.alignment.prompts import read_prompts
from fedllm.config import RunConfig, parse, to_toml
from fedllm.config.alignment import PromptsSection
from fedllm.data.asked import Asked
from fedllm.errors import DataError, RefusedError
from fedllm.rating.answers import AnswerFile


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(path: Path, count: int = 40, **more: Any) -> Path:
    return write(path, [{"prompt": text, **more} for text in texts(count)])


def run_of(folder: Path, train: Path | str, task: str = "instruction", **sections: Any) -> Path:
    """Write the configuration of a run that trained on a file."""
    values = {
        "name": folder.name,
        "task": task,
        "model": {"path": "base", **sections.pop("model", {})},
        "data": {"train": str(train), **sections.pop("data", {})},
        **sections,
    }
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text(to_toml(parse(RunConfig, values, "test")))
    return folder


def asked(path: Path, runs: list[Path], column: str = "prompt", found: list[str] | None = None):
    require(path, runs, column, found)


def require(
    path: Path, runs: list[Path], column: str = "prompt", found: list[str] | None = None
) -> list[str]:
    given = [Asked(n, text) for n, text in enumerate(texts(40) if found is None else found, 1)]
    return require_public(PromptsSection(file=str(path), column=column), given, runs)


@pytest.fixture
def records(tmp_path) -> Path:
    """What sites trained on."""
    rows = [{"prompt": f"ward {n}", "response": "rest", "note": "x"} for n in range(30)]
    return write(tmp_path / "site/records.jsonl", rows)


def test_public_prompts_are_let_through(tmp_path, records):
    asked(prompts(tmp_path / "prompts.jsonl", source="a book"), [run_of(tmp_path / "r", records)])
    lines = tmp_path / "prompts.txt"
    lines.write_text("\n".join(texts(40)))
    asked(lines, [tmp_path / "r"])


def test_a_file_in_a_kit_is_refused(tmp_path):
    path = prompts(tmp_path / "kit/data/prompts.jsonl")
    (tmp_path / "kit/kit.json").write_text("{}")
    with pytest.raises(RefusedError, match="lies in the kit"):
        asked(path, [])


@pytest.mark.parametrize("place", ["site.toml", "../site.toml"])
def test_what_a_sites_policy_names_is_refused(tmp_path, place):
    path = prompts(tmp_path / "site/data/notes.jsonl")
    policy = path.parent / place
    policy.write_text("[budget]\nepsilon = 8\n[data]\ntrain = '*.jsonl'\n")
    if place == "site.toml":
        with pytest.raises(RefusedError, match=r"data.train of .*site.toml"):
            asked(path, [])
    else:
        asked(path, [])
        policy.write_text("[budget]\nepsilon = 8\n[data]\ntrain = 'data/*.jsonl'\n")
        with pytest.raises(RefusedError, match=r"data.train of .*site.toml"):
            asked(path, [])


@pytest.mark.parametrize("way", ["same", "link", "copy"])
def test_what_a_run_trained_on_is_refused_under_every_name(tmp_path, way):
    train = prompts(tmp_path / "site/train.jsonl")
    run, path = run_of(tmp_path / "taught", train), tmp_path / "public/prompts.jsonl"
    path.parent.mkdir()
    if way == "same":
        path = train
    elif way == "link":
        path.symlink_to(train)
    else:
        path.write_bytes(train.read_bytes())
    with pytest.raises(RefusedError, match=r"it is data\.train of the run taught"):
        asked(path, [run])


def test_a_run_that_the_named_one_began_with_counts_too(tmp_path, records):
    train = prompts(tmp_path / "site/train.jsonl")
    first = run_of(tmp_path / "first", train)
    second = run_of(tmp_path / "second", records, model={"start": str(first)})
    with pytest.raises(RefusedError, match="the run first"):
        asked(train, [second])


@pytest.mark.parametrize(
    "column", ["chosen", "Ranks", "answers", "context", "rater", "label", "Patient_ID"]
)
def test_rows_of_records_are_refused(tmp_path, records, column):
    path = prompts(tmp_path / "prompts.jsonl", **{column: "x"})
    with pytest.raises(RefusedError, match=f"with '{column}' its rows are records"):
        asked(path, [run_of(tmp_path / "r", records)])


def test_columns_that_a_run_reads_are_refused(tmp_path, records):
    data = {"prompt": "question", "response": "note", "unit": "case"}
    run = run_of(tmp_path / "r", records, data=data)
    for column in ("note", "case"):
        path = prompts(tmp_path / f"{column}.jsonl", **{column: "x"})
        with pytest.raises(RefusedError, match="are records, and not prompts alone"):
            asked(path, [run])


@pytest.mark.parametrize("task", ["instruction", "preference"])
def test_prompts_of_records_are_refused_in_a_file_of_their_own(tmp_path, task):
    answers = {"chosen": "rest", "rejected": "run"} if task == "preference" else {}
    rows = [{"prompt": text, "response": "rest", **answers} for text in texts(40)]
    run = run_of(tmp_path / "r", write(tmp_path / "site/records.jsonl", rows), task)
    few = [*texts(2), *(f"another {n}" for n in range(38))]
    asked(write(tmp_path / "few.jsonl", [{"prompt": t} for t in few]), [run], found=few)
    many = [f" {text.upper()} " for text in texts(40)]
    path = write(tmp_path / "many.jsonl", [{"prompt": text} for text in many])
    with pytest.raises(RefusedError, match="40 of the 40 prompts stand in the records"):
        asked(path, [run], found=many)


@pytest.mark.parametrize("which", ["asked", "answered"])
def test_what_stands_in_rankings_is_refused_alone(tmp_path, which):
    """With its context before it, or taken out of the list of answers."""
    rows = [
        {"prompt": f"p{n}", "context": "ward", "answers": [f"a {n}", f"b {n}"], "ranks": [1, 2]}
        for n in range(40)
    ]
    run = run_of(tmp_path / "r", write(tmp_path / "site/rankings.jsonl", rows), "preference")
    found = [f"ward\n\np{n}" if which == "asked" else f"B {n}" for n in range(40)]
    path = write(tmp_path / "prompts.jsonl", [{"prompt": text} for text in found])
    with pytest.raises(RefusedError, match="40 of the 40 prompts stand in the records"):
        asked(path, [run], found=found)


@pytest.mark.parametrize("name", ["prompts.jsonl", "prompts.txt", "cases.answers.jsonl"])
def test_what_raters_saw_and_said_is_refused_under_every_name(tmp_path, name):
    asked(prompts(tmp_path / "public.jsonl"), [])
    if "answers" in name:
        said = AnswerFile(tmp_path / name, ORIGIN)
        said.add(QUESTIONS[0], answers_to(QUESTIONS[0]))
    else:
        with session(tmp_path) as rated:
            rated.obey("s", rated.item())
        (tmp_path / "ratings.jsonl").rename(tmp_path / name)
    with pytest.raises(RefusedError, match="fedllm wrote it at a site"):
        asked(tmp_path / name, [])


def test_no_prompt_stands_in_what_is_said(tmp_path):
    train = prompts(tmp_path / "site/train.jsonl")
    with pytest.raises(RefusedError) as caught:
        asked(train, [run_of(tmp_path / "r", train)])
    assert not any(text in str(caught.value) for text in texts(40))


@pytest.mark.parametrize("known", ["kit", "policy"])
def test_a_link_hides_nothing(tmp_path, known):
    path = prompts(tmp_path / "site/data/prompts.jsonl")
    if known == "kit":
        (tmp_path / "site/kit.json").write_text("{}")
    else:
        policy = "[budget]\nepsilon = 8\n[data]\ntrain = 'data/*.jsonl'\n"
        (tmp_path / "site/policy.toml").write_text(policy)
    (tmp_path / "public").mkdir()
    (tmp_path / "public/p.jsonl").symlink_to(path)
    (tmp_path / "linked").symlink_to(path.parent)
    for link in (tmp_path / "public/p.jsonl", tmp_path / "linked/prompts.jsonl"):
        with pytest.raises(RefusedError, match="is not public"):
            asked(link, [])
    # A link in a kit to what lies elsewhere is in the kit too.
    elsewhere = prompts(tmp_path / "elsewhere/prompts.jsonl")
    asked(elsewhere, [])
    (tmp_path / "site/data/other.jsonl").symlink_to(elsewhere)
    with pytest.raises(RefusedError, match="is not public"):
        asked(tmp_path / "site/data/other.jsonl", [])


@pytest.mark.parametrize("name", ["p.ndjson", "p.txt", "p", "p.parquet"])
def test_columns_are_looked_at_whatever_the_files_suffix(tmp_path, name):
    path = prompts(tmp_path / name, Chosen="x")
    if name == "p.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").Table.from_pylist(
            [{"prompt": text, "Chosen": "x"} for text in texts(40)]
        )
        parquet.write_table(table, path)
    with pytest.raises(RefusedError, match="with 'Chosen' its rows are records"):
        asked(path, [])


def test_columns_are_looked_at_in_all_rows(tmp_path):
    rows = [{"prompt": f"x {n}"} for n in range(1500)]
    asked(write(tmp_path / "alone.jsonl", rows), [])
    late = write(tmp_path / "late.jsonl", [*rows, {"prompt": "y", "chosen": "a"}])
    with pytest.raises(RefusedError, match="with 'chosen' its rows are records"):
        asked(late, [])


@pytest.mark.parametrize("key", ["start", "reward", "judge", "beyond"])
def test_what_an_aligned_model_was_made_of_counts_in_the_next_alignment(tmp_path, records, key):
    of_records = write(tmp_path / "site/taught.jsonl", [{"prompt": t} for t in texts(40)])
    run_of(tmp_path / "taught", of_records)
    places = {name: tmp_path / "nowhere" for name in ("start", "reward", "judge")}
    if key == "beyond":
        run_of(tmp_path / "later", records, model={"start": str(tmp_path / "taught")})
        places["reward"] = tmp_path / "later/adapter"
    else:
        places[key] = tmp_path / "taught"
    aligned = run_of(tmp_path / "aligned", records)
    (aligned / "align.toml").write_text(
        f"[model]\nstart = '{places['start']}'\n"
        f"[reward]\nrun = '{places['reward']}'\njudge = '{places['judge']}'\n"
    )
    # An aligned model that was aligned again has it behind two files.
    again = run_of(tmp_path / "again", records)
    (again / "align.toml").write_text("[model]\nstart = '../aligned'\n")
    for run in (aligned, again):
        with pytest.raises(RefusedError, match=r"data\.train of the run taught"):
            asked(of_records, [run])


def test_records_that_cannot_be_compared_are_named(tmp_path, records, monkeypatch):
    run, path = run_of(tmp_path / "r", records), prompts(tmp_path / "p.jsonl")
    away = run_of(tmp_path / "away", tmp_path / "elsewhere.jsonl")
    assert require(path, [run, away]) == []
    monkeypatch.setattr("fedllm.alignment.private_files._MOST_BYTES", 10)
    assert require(path, [run]) == ["r"]
    monkeypatch.undo()
    with records.open("a") as file:
        file.write('{"prompt": "", "response": "rest"}\n')
    assert require(path, [run, away]) == ["r"]


def test_standard_input_is_no_file_of_prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = configuration(prompts={"file": "-"})
    with pytest.raises(DataError, match="-"):
        read_prompts(config.prompts)


def test_a_context_is_allowed_where_it_is_named_and_none_of_a_record(tmp_path):
    rows = [
        {"prompt": f"ward {n}", "context": f"note {n}", "chosen": "a", "rejected": "b"}
        for n in range(30)
    ]
    run = run_of(tmp_path / "r", write(tmp_path / "site/records.jsonl", rows), "preference")

    def of(name, *, prompt="Question {}?", context="Leaflet {}.", named=True):
        found = [{"prompt": prompt.format(n), "context": context.format(n)} for n in range(30)]
        path = str(write(tmp_path / name, found))
        section = PromptsSection(file=path, context="context" if named else None)
        return require_public(section, read_prompts(section), [run])

    assert of("public.jsonl") == []
    with pytest.raises(RefusedError, match="'context' its rows are records"):
        of("unnamed.jsonl", named=False)
    # A note of a record with another question, its question with another context, and both.
    for name, more in (
        ("notes.jsonl", {"context": "note {}"}),
        ("questions.jsonl", {"prompt": "Ward {}"}),
        ("both.jsonl", {"prompt": "note {0}\n\nward {0}"}),
    ):
        with pytest.raises(RefusedError, match="30 of the 30 prompts stand in the records"):
            of(name, **more)
