"""The example of preferences: its truth, settings, table, and all of it in its tiniest form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.scripts import scripts_of

from fedllm.config import load_run_config
from fedllm.config.alignment import load_align_config
from fedllm.data.rankings import Ranking
from fedllm.runs.summary import Summary, write_summary
from fedllm.tasks import task_of

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/preferences"


@pytest.fixture
def part(monkeypatch):
    with scripts_of(EXAMPLE, monkeypatch) as load:
        yield load


def test_what_a_model_wrote_is_worth_what_its_sentences_are(part):
    prepare = part("prepare")
    good, bad = "Open the card menu in the app.", "The weather is fine at sea."
    depends = "It depends on the account, really."
    assert prepare.worth(f"{good} {bad}") == 0.0
    assert prepare.worth(f"{good}  {depends}\n") == 0.75
    assert prepare.worth(f"{good} {good}") == -1.0
    # Cut off: what is left of a sentence is none.
    assert prepare.worth(f"{good} Open the card") == 0.0
    assert prepare.worth(" ") < min(prepare.WORTH)
    draw = prepare.random.Random(1)
    for text, worth in (prepare.answer(draw) for _ in range(50)):
        assert prepare.worth(text) == pytest.approx(worth)


@pytest.fixture
def prepared(part, tmp_path) -> Path:
    """A folder with every hundredth record."""
    part("prepare").prepare(tmp_path / "data", 100)
    (tmp_path / "private-public.jsonl").write_text("")
    return tmp_path


def test_every_step_can_be_read_and_finds_its_data(part, prepared):
    run = part("run")
    form = replace(run.FORMS["quick"], banks=4)
    for variant, step in run.steps(clear=True):
        words = run.settings(prepared, variant, step, form)
        if step in ("grpo", "ppo"):
            config = load_align_config(run.file_of(step), words)
            assert Path(config.model.start) == prepared / f"{variant}-taught"
            assert Path(config.reward.judge or "") == prepared / f"{variant}-judge"
            continue
        found = load_run_config(run.file_of(step), words)
        clear = variant != "private" or step == "selected"
        assert (found.privacy.epsilon is None) == clear
        if step == "selected":
            # Nobody's records.
            assert Path(found.data.train) == prepared / f"{variant}-public.jsonl"
            continue
        records = task_of(found).read(found.data.train, found.data)
        alone = variant == "alone"
        every = {"taught": 30, "judge": 20}.get(step, 80)
        assert len(records) == (-(-every // 10) if alone else every)
        sites = 2 if alone else 4
        assert found.rounds.min_sites == sites
        wanted = found.training.sampling_rate * len(records) / sites
        assert found.training.batch_size == max(1, round(wanted))


def test_a_bank_alone_has_what_it_has_among_the_others(prepared):
    def lines(name):
        return (prepared / f"data/{name}.jsonl").read_text().splitlines()

    assert lines("alone") == lines("train")[::10]
    assert not {*lines("asked")} & {*lines("prompts")}


def finished(out: Path, step: str, epsilon: float | None = 8.0, **more) -> None:
    summary = Summary(privacy={"epsilon": epsilon}, seconds={"total": 90.0}, **more)
    (out / step).mkdir(parents=True)
    write_summary(out / step, summary)


def test_the_table_has_what_the_runs_wrote(part, tmp_path):
    table = part("table")
    finished(tmp_path, "private-taught", 7.5)
    finished(tmp_path, "private-reward", 8.0)
    finished(tmp_path, "private-judge", 7.9)
    gain = {"reward_gain": 1.5, "reward_gain_low": 1.25, "reward_gain_high": 1.75}
    finished(tmp_path, "private-grpo", 0.0, alignment=gain)
    finished(tmp_path, "clear-taught", None)
    (tmp_path / "scores").mkdir()
    scores = {
        **{"win_rate": 0.8, "win_rate_low": 0.7, "win_rate_high": 0.9, "kl": 3.25},
        **{"worth": 1.0, "worth_of_start": 0.1, "tokens": 20.0, "tokens_of_start": 18.0},
        **{"empty": 0.0, "cut": 0.01, "repeated": 0.02},
    }
    (tmp_path / "scores/private-grpo.json").write_text(json.dumps(scores))
    right = {"private": {"hits": [2.0] * 75 + [0.0] * 25, "pairs": [2.0] * 100}}
    (tmp_path / "scores/pairs-reward.json").write_text(json.dumps(right))
    table.write_table(tmp_path, "quick", part("run").steps(clear=True))
    text = (tmp_path / "table.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")][-5:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    nothing = [""] * 8
    assert cells[1][:3] == ["private", "reward", "8.00"]
    assert cells[1][3].startswith("0.750 (0.6")
    # Whoever took part in all that it is made of spent all of it.
    assert cells[3] == [
        *("private", "grpo", "7.50 + 8.00 + 7.90", "", "0.80 (0.70 to 0.90)"),
        *("1.50 (1.25 to 1.75)", "3.25", "1.00, 0.10", "20.00, 18.00", "0.0%", "1.0%", "2.0%"),
        "1.5",
    ]
    assert cells[4] == ["clear", "taught", "none", "", *nothing, "1.5"]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row["step"] for row in rows] == ["taught", "reward", "judge", "grpo", "taught"]
    assert "private grpo: reward +1.50 sd" in text
    assert "length +11% (within 20%), **repeated 2.0% (under 2%): missed**" in text
    assert "the same pairs" not in text
    # 100 events of two pairs: private and clear differ in one event, and in half of all.
    both, fewer = [2.0] * 100, [1.0] * 50 + [2.0] * 50
    for step, clear in (("reward", [1.0, *both[1:]]), ("dpo", both)):
        rights = {"private": both if step == "reward" else fewer, "clear": clear}
        told = {name: {"hits": hits, "pairs": both} for name, hits in rights.items()}
        (tmp_path / f"scores/pairs-{step}.json").write_text(json.dumps(told))
    table.write_table(tmp_path, "quick", part("run").steps(clear=True))
    text = (tmp_path / "table.md").read_text()
    reward, dpo = (
        next(
            line
            for line in text.splitlines()
            if line.startswith((f"| {step} | +", f"| {step} | -"))
        )
        for step in ("reward", "dpo")
    )
    assert "+0.5 (+0.0 to" in reward and reward.endswith("| within a point |")
    assert "-25.0 (-" in dpo and dpo.endswith("| not within a point |")


def test_steps_wait_for_what_they_read_and_for_nothing_else(part, tmp_path):
    run = part("run")
    for clear in (False, True):
        made = run.jobs(tmp_path, clear, run.FORMS["tiny"])
        names = [job.name for job in made]
        assert len({*names}) == len(names)
        for job in made:
            assert {*job.needs} <= {*names} - {job.name}
        needs = {job.name: {*job.needs} for job in made}
        assert needs["private-reward"] == set()
        assert needs["private-ppo"] == {"private-taught", "private-reward", "private-judge"}
        variants = {"private", "clear", "alone"} if clear else {"private"}
        assert needs["pairs by dpo"] == {f"{one}-dpo" for one in variants}
    # Nobody trained a judge on what one bank has.
    assert "clear-judge" in needs["answers of alone-dpo"]


def test_jobs_run_side_by_side_and_a_failure_ends_all(part, tmp_path, capfd):
    side = part("side_by_side")

    def job(name, *needs, path="touched"):
        return side.Job(name, partial(os.mkdir, tmp_path / path / name), needs)

    (tmp_path / "touched").mkdir()
    side.side_by_side([job("c", "a", "b"), job("a"), job("b")], 2, 1)
    told = capfd.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in told][:2] == ["a: begun", "b: begun"]
    assert told[-1].startswith("c: done")
    with pytest.raises(SystemExit, match="d failed"):
        side.side_by_side([job("d", path="nowhere"), job("e", "d")], 2, 1)
    assert "FileNotFoundError" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="what e needs"):
        side.side_by_side([job("e", "d")], 2, 1)
    assert sorted(path.name for path in (tmp_path / "touched").iterdir()) == ["a", "b", "c"]


def test_whoever_ends_the_chain_ends_what_it_runs(tmp_path):
    """Else a second start would write into the same folders beside the first."""
    program = tmp_path / "chain.py"
    program.write_text(
        "import subprocess, sys\n"
        "from functools import partial\n"
        f"sys.path.insert(0, {str(EXAMPLE)!r})\n"
        "from side_by_side import Job, side_by_side\n"
        "if __name__ == '__main__':\n"
        f"    command = ['sh', '-c', 'echo $$ > {tmp_path}/begun; exec sleep 100']\n"
        "    side_by_side([Job('a', partial(subprocess.check_call, command))], 2, 1)\n"
    )
    chain = subprocess.Popen([sys.executable, str(program)])
    begun = tmp_path / "begun"
    while not (begun.exists() and begun.read_text().strip()):
        assert chain.poll() is None
        time.sleep(0.05)
    chain.terminate()
    assert chain.wait() == 128 + signal.SIGTERM
    number = int(begun.read_text())
    while Path(f"/proc/{number}/stat").exists():
        # Its parent may not have asked yet how it ended.
        if Path(f"/proc/{number}/stat").read_text().split()[2] == "Z":
            break
        time.sleep(0.05)


def test_intervals_are_of_whole_events_and_of_the_same_pairs(part):
    paired = part("paired")
    hits, pairs = np.array([6.0, 0.0] * 50), np.full(100, 6.0)
    one = paired.accuracy(paired.Right(hits, pairs))
    # As wide as of 100 draws, and not of 600.
    assert one.mean == 0.5
    assert one.error == pytest.approx(0.05, rel=0.1)
    assert one.high - one.low == pytest.approx(4 * 0.049, rel=0.1)
    same = paired.difference(paired.Right(hits, pairs), paired.Right(hits - (hits > 3), pairs))
    assert same.mean == pytest.approx(0.5 / 6)
    assert same.error < one.error / 5
    with pytest.raises(SystemExit, match="not the same pairs"):
        paired.difference(paired.Right(hits, pairs), paired.Right(hits, pairs + 1))


EVENTS = [
    Ranking("Is it open?", "", ("It is open.", "No, it is closed today."), ((0, 1),)),
    Ranking("May I?", "Rules.", ("You may.", "No, you may not.", "No."), ((0, 1), (0, 2), (1, 2))),
]


def test_rules_prefer_what_they_say(part):
    paired, rules = part("paired"), part("rules")
    found = {rule: paired.by_scores(EVENTS, getattr(rules, rule)) for rule in ("longer", "overlap")}
    assert found["longer"].hits.tolist() == [0.0, 2.0]
    assert found["overlap"].hits[0] == 1.0
    # A tie is half of one.
    coin = paired.by_scores(EVENTS, lambda ranking: [0.0] * len(ranking.answers))
    assert coin.hits.tolist() == [0.5, 1.5]


def test_words_alone_learn_which_words_are_liked(part, monkeypatch):
    rules = part("rules")
    monkeypatch.setattr(rules, "WEIGHT", 0.1)
    training = [
        Ranking(f"Question {n}", "", (f"good {n}", f"bad {n}"), ((0, 1),)) for n in range(20)
    ]
    good, bad, none = rules.unigram(training)(Ranking("", "", ("so good", "so bad", "so"), ()))
    assert good > none > bad


def test_the_table_of_rankings_by_humans_says_what_so_few_can_show(part):
    human = part("human")
    rng = np.random.default_rng(3)
    pairs = np.full(100, 4.0)
    found = {
        name: part("paired").Right(rng.binomial(4, 0.6, 100).astype(float), pairs)
        for name in ("private", "clear", "longer")
    }
    text = human.compared(found, EVENTS, 2)
    assert "400 pairs of 100 events to test on; 2 events to train on, 1 a site" in text
    assert "| private less clear |" in text
    assert "| private less private |" not in text
    error = np.sqrt(0.6 * 0.4 / 400)
    told = float(text.split("must be ")[1].split(" points")[0])
    assert told == pytest.approx(280 * error, rel=0.25)


@pytest.mark.slow
def test_all_of_it_runs_and_is_not_run_again(tmp_path):
    command = [sys.executable, EXAMPLE / "run.py", "--tiny", "--clear"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    told = []
    for _ in range(2):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    # All jobs are looked at again, and no command is run.
    assert told[1].count(": done, 0.0 minutes") >= 19
    rows = json.loads((tmp_path / "runs/preferences-tiny/results.json").read_text())["rows"]
    assert len(rows) == 19
    private = {row["step"]: row for row in rows if row["variant"] == "private"}
    # All that a selected model learned of rankings it learned of the released selector.
    assert len(private["selected"]["epsilons"]) == 2
    assert all(one <= 8 for row in private.values() for one in row["epsilons"])
    assert all(row["epsilons"] is None for row in rows if row["variant"] != "private")
