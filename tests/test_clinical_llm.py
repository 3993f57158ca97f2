"""The clinical example: its files, its scores, its table, and all of it on the stand-in."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.scripts import scripts_of

from fedllm.config import load_run_config
from fedllm.runs.summary import Summary, write_summary
from fedllm.tasks import task_of

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/clinical_llm"
TASKS = ("medquad", "pubmedqa", "notes", "chinese")


@pytest.fixture
def part(monkeypatch):
    with scripts_of(EXAMPLE, monkeypatch) as load:
        yield load


def test_each_nth_record_of_a_site_is_kept(part):
    rows = [{"site": site, "prompt": str(n)} for n in range(6) for site in "ab"]
    kept = part("prepare").thinned(rows, 3)
    assert [(row["site"], row["prompt"]) for row in kept] == [
        ("a", "0"),
        ("b", "0"),
        ("a", "3"),
        ("b", "3"),
    ]


def test_the_hospital_alone_is_of_middle_size(part):
    rows = [{"site": site} for site, count in (("a", 9), ("b", 1), ("c", 4)) for _ in range(count)]
    assert part("prepare").of_middle_size(rows) == [{"site": "c"}] * 4


def test_what_settings_are_chosen_by_is_about_other_things_than_what_is_trained(part, tmp_path):
    data = tmp_path / "data/medquad"
    data.mkdir(parents=True)
    rows = [
        {"question": f"q{n}", "answer": f"a{n}", "source": f"s{n % 3}", "focus": f"f{n // 4}"}
        for n in range(400)
    ]
    for name in ("train", "test"):
        with gzip.open(data / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
    (tmp_path / "data/pretrain_en").mkdir()
    with gzip.open(tmp_path / "data/pretrain_en/train.jsonl.gz", "wt") as file:
        file.writelines(f"{json.dumps({'text': f'text {n}'})}\n" for n in range(600))
    prepare = part("prepare")
    prepare.prepare("medquad", tmp_path / "data", tmp_path / "out", 1)
    assert len((tmp_path / "out/public.jsonl").read_text().splitlines()) == 256
    focus = {row["question"]: row["focus"] for row in rows}
    about = {}
    for name in ("train", "choose"):
        lines = (tmp_path / f"out/medquad/{name}.jsonl").read_text().splitlines()
        about[name] = [focus[json.loads(line)["prompt"]] for line in lines]
    assert len(about["train"]) + len(about["choose"]) == 400
    assert 4 <= len(about["choose"]) <= 100
    assert not set(about["train"]) & set(about["choose"])


def test_macro_f1_counts_each_label_the_same(part):
    macro = part("score").macro_f1
    assert macro(["yes", "no", "maybe"], ["yes", "no", "maybe"]) == 1.0
    # yes: 2 of 3 predicted, all 2 found; the others never.
    assert macro(["yes", "yes", "yes"], ["yes", "yes", "no"]) == pytest.approx(0.8 / 3)


def test_marks_width_and_case_do_not_count_in_chinese_answers(part):
    score = part("score")
    assert score.characters("“１９８０ 年”，A。") == "1980年a"
    # Two characters in common of three and two.
    assert score.character_f1("北京市", "北京。") == pytest.approx(0.8)
    assert score.character_f1("", "北京") == 0.0


def test_rouge_l_is_that_of_the_longest_common_subsequence(part):
    pytest.importorskip("rouge_score")
    found = part("score").rouge_l(["a pain in the chest"], ["the chest pain"])
    # "the chest" of five and three words.
    assert found == pytest.approx(2 * (2 / 5) * (2 / 3) / (2 / 5 + 2 / 3))


def test_the_majority_is_that_of_training(part):
    train = [{"response": label} for label in ("no", "no", "yes")]
    test = [{"response": label} for label in ("yes", "yes", "no", "maybe")]
    assert part("score").majority(train, test)["accuracy"] == 0.25


def _finished(out: Path, arm: str, after: float, epsilon: float | None) -> None:
    summary = Summary(
        rounds=2,
        sites=9,
        metrics_before={"loss": 2.0},
        metrics={"loss": after, "records": 5.0, "tokens": 50.0},
        privacy={"epsilon": epsilon},
        seconds={"total": 120.0},
        model={"method": "core"},
    )
    (out / f"medquad-{arm}").mkdir(parents=True)
    write_summary(out / f"medquad-{arm}", summary)


def test_the_table_has_what_the_runs_wrote(part, tmp_path):
    table = part("table")
    _finished(tmp_path, "private-8", 1.7, 7.99)
    _finished(tmp_path, "clear", 1.6, None)
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores/medquad-base.json").write_text('{"records": 3, "rouge_l": 0.125}')
    arms = [table.Arm("medquad", name) for name in ("private-8", "clear")]
    table.write_table(tmp_path, "quick", arms)
    base, private, clear = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (base["loss"], base["scores"]["rouge_l"]) == (2.0, 0.125)
    # Of the .4 that is gained without privacy it keeps .3.
    assert private["part_of_clear"] == pytest.approx(0.75)
    assert clear["part_of_clear"] == pytest.approx(1.0)
    lines = (tmp_path / "table.md").read_text().splitlines()[-3:]
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines] == [
        ["medquad", "base", "", "", "", "2.0000", "7.39", "", "rouge_l 0.125", ""],
        ["medquad", "private-8", "7.99", "9", "2", "1.7000", "5.47", "0.75", "", "2"],
        ["medquad", "clear", "", "9", "2", "1.6000", "4.95", "1.00", "", "2"],
    ]


@pytest.mark.data
@pytest.mark.parametrize("task", TASKS)
def test_runs_can_be_read_and_find_what_is_prepared(part, task, public_data, tmp_path, monkeypatch):
    part("prepare").prepare(task, public_data, tmp_path, 50)
    monkeypatch.setenv("CLINICAL_DATA", str(tmp_path))
    monkeypatch.setenv("FEDLLM_DATA", str(public_data))
    config = load_run_config(EXAMPLE / f"{task}.toml")
    found = task_of(config.task)
    records = found.read(config.data.train, config.data)
    assert len(records) > 5
    assert len(found.read_public(config.data)) > 100
    if task == "medquad":
        assert len({record.site for record in records}) == config.rounds.min_sites == 9


@pytest.mark.slow
@pytest.mark.data
def test_all_of_it_runs_on_the_stand_in_and_is_not_run_again(public_data, tmp_path):
    environment = {**os.environ, "FEDLLM_DATA": str(public_data)}
    environment.pop("CLINICAL_MODEL", None)
    command = [sys.executable, EXAMPLE / "run.py", "--quick"]
    told = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout + done.stderr)
    assert told[1].count("is finished already") == 2 * len(TASKS)
    rows = json.loads((tmp_path / "runs/clinical-quick/results.json").read_text())["rows"]
    assert [(row["task"], row["name"]) for row in rows] == [
        (task, arm) for task in TASKS for arm in ("base", "private-8", "clear")
    ]
    private = [row for row in rows if row["name"] == "private-8"]
    assert all(row["epsilon"] <= 8 and row["encryption"] == "bfv" for row in private)
    # A model of so few words learns something of every task at once.
    assert all(row["gain"] > 0 for row in rows if row["name"] == "clear")
