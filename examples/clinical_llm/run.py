"""Fine-tune one open model for four clinical tasks, private and not; put the figures in a table.

    CLINICAL_MODEL=DIR python examples/clinical_llm/run.py --quick

DIR is the folder of a decoder's Hugging Face checkpoint; without it a small stand-in is pretrained
and used. Each arm is a run of `fedllm simulate` in a folder of its own: the same command again goes
on where it was broken off, and runs no finished arm again. Every figure of OUT/table.md and
OUT/results.json is read from the runs' summary.json and from OUT/scores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prepare import SOURCES, prepare
from table import Arm, write_table

from fedllm.commands.base_model import with_base_model
from fedllm.config import RunConfig, load_run_config
from fedllm.files import write_json

HERE = Path(__file__).resolve().parent
TASKS = tuple(SOURCES)
# Without privacy there is no noise to keep small: the adapter that has most to learn with.
CLEAR = (
    "privacy.epsilon=",
    "privacy.noise=local",
    "lora.method=lora",
    "lora.public_texts=",
    "lora.rank=8",
    "lora.alpha=16",
    'lora.target_modules=["q_proj","k_proj","v_proj","o_proj","gate_proj","up_proj","down_proj"]',
    "rounds.optimizer=adam",
    "rounds.learning_rate=0.001",
)


@dataclass(frozen=True)
class Form:
    """How much is done.

    Attributes
    ----------
    every : dict
        Each so manyeth training record of a task is used.
    rounds : int
        Steps of a private run: each round is one, on records of all sites.
    batch, small_batch : int
        Records of all sites together in such a step, on average: of MedQuAD, and of the other
        tasks, which have fewer and longer ones.
    test, scored : int
        Records of the test file for the loss, and for what is generated.
    arms : tuple of str
        Which of the arms are run, for MedQuAD; the other tasks have the first two.
    """

    every: dict[str, int]
    rounds: int
    batch: int
    small_batch: int
    test: int
    scored: int
    arms: tuple[str, ...]


SMALLER = 2
ALL_ARMS = ("private-8", "clear", "private-3", "alone")
# The noise in a step is divided by its records; the more there are to draw from, the less of it.
FORMS = {
    "quick": Form(
        every={"medquad": 1, "pubmedqa": 5, "notes": 10, "chinese": 10},
        rounds=5,
        batch=128,
        small_batch=40,
        test=60,
        scored=24,
        arms=ALL_ARMS[:2],
    ),
    "hour": Form(
        every={"medquad": 1, "pubmedqa": 1, "notes": 2, "chinese": 2},
        rounds=12,
        batch=320,
        small_batch=160,
        test=100,
        scored=48,
        arms=ALL_ARMS,
    ),
    "full": Form(
        every={"medquad": 1, "pubmedqa": 1, "notes": 1, "chinese": 1},
        rounds=8,
        batch=1024,
        small_batch=256,
        test=150,
        scored=48,
        arms=ALL_ARMS,
    ),
}


def records(path: Path) -> list[dict[str, Any]]:
    """Read a file of `prepare`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def settings(task: str, arm: str, form: Form, data: Path) -> list[str]:
    """Return what an arm has otherwise than the task's file, as --set takes it."""
    config = load_run_config(HERE / f"{task}.toml", [])
    file = data / task / ("alone.jsonl" if arm == "alone" else "train.jsonl")
    count, sites = len(records(file)), 2 if arm == "alone" else config.rounds.min_sites
    batch, rounds = form.batch if task == "medquad" else form.small_batch, form.rounds
    if arm in ("clear", "alone"):
        # As many records in smaller steps: there is no noise to divide by them.
        batch, rounds = batch // SMALLER, rounds * SMALLER
    rate = min(1.0, batch / count)
    words = {
        "name": f"clinical-{task}-{arm}",
        "data.train": json.dumps(str(file.absolute())),
        "data.test": json.dumps(str((data / task / "test.jsonl").absolute())),
        "data.test_limit": form.test,
        "rounds.count": rounds,
        "rounds.evaluate_every": max(1, rounds // 2),
        "training.sampling_rate": round(rate, 4),
        "training.batch_size": max(1, round(rate * count / sites)),
    }
    if config.lora.public_texts is not None:
        words["lora.public_texts"] = json.dumps(str((data / "public.jsonl").absolute()))
    pairs = [f"{key}={value}" for key, value in words.items()]
    if arm in ("clear", "alone"):
        pairs += CLEAR
    if arm == "alone":
        # A run needs two sites: one step a round on both halves is a step on the whole.
        pairs += ["data.site=", "data.partition=iid", "data.sites=2", "rounds.min_sites=2"]
    if arm == "private-3":
        pairs += ["privacy.epsilon=3"]
    return pairs


def simulate(task: str, words: list[str], folder: Path) -> None:
    """Run an arm, go on with it, or find it finished."""
    command = [sys.executable, "-m", "fedllm", "simulate", str(HERE / f"{task}.toml")]
    if threads := os.environ.get("OMP_NUM_THREADS"):
        # For arms that run side by side; it decides nothing about the run.
        words = [*words, f"engine.threads={threads}"]
    command += [part for word in words for part in ("--set", word)] + ["--out", str(folder)]
    if (folder / "run.toml").exists():
        command.append("--resume")
    done = subprocess.run(command, check=False)
    if done.returncode:
        # It said why.
        sys.exit(done.returncode)


def score(task: str, arm: str, config: RunConfig, form: Form, out: Path) -> None:
    """Score the base model, or an arm's adapter on it, unless that was done."""
    path = out / "scores" / f"{task}-{arm}.json"
    if path.exists():
        return
    from score import Reader, majority, scored

    adapter = None if arm == "base" else out / f"{task}-{arm}" / "adapter"
    reader = Reader.load(Path(config.model.path), adapter, config.model.max_length)
    test = records(out / "data" / task / "test.jsonl")
    # Evenly over the file, which is in the order of its sources.
    rows = test[:: max(1, len(test) // form.scored)][: form.scored]
    figures: dict[str, Any] = {"records": len(rows), **scored(reader, task, rows)}
    if task == "pubmedqa":
        figures["majority"] = majority(records(out / "data" / task / "train.jsonl"), rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)


def arms_of(task: str, form: Form) -> tuple[str, ...]:
    """Return the names of a task's arms."""
    return form.arms if task == "medquad" else form.arms[:2]


def tabulate(out: Path, name: str) -> None:
    """Write the table of all arms that are finished, whichever were asked for."""
    every = [Arm(task, arm) for task in TASKS for arm in arms_of(task, FORMS[name])]
    finished = [arm for arm in every if (out / f"{arm.task}-{arm.name}" / "summary.json").exists()]
    if finished:
        write_table(out, name, finished)


def main() -> None:
    """Run the arms that were asked for, of the tasks that were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", dest="form", action="store_const", const="quick")
    parser.add_argument("--hour", dest="form", action="store_const", const="hour")
    parser.add_argument("--task", dest="tasks", action="append", choices=TASKS)
    parser.add_argument(
        "--arm", dest="arms", action="append", help="to run several side by side, in processes"
    )
    parser.add_argument("--out", type=Path, help="runs/clinical-FORM when left out")
    arguments = parser.parse_args()
    name = arguments.form or "full"
    form, out = FORMS[name], arguments.out or Path("runs") / f"clinical-{name}"
    if not os.environ.get("CLINICAL_MODEL"):
        print("CLINICAL_MODEL names no model: a small stand-in is used, see the README", flush=True)
    for task in arguments.tasks or TASKS:
        data = Path(os.environ.get("FEDLLM_DATA", HERE / "../../../shared/data"))
        if not (out / "data" / task / "test.jsonl").exists():
            prepare(task, data, out / "data", form.every[task])
        config = with_base_model(load_run_config(HERE / f"{task}.toml", []))
        for arm in ("base", *arms_of(task, form)):
            if arguments.arms and arm not in arguments.arms:
                continue
            print(f"\n== {task}, {arm}", flush=True)
            if arm != "base":
                simulate(task, settings(task, arm, form, out / "data"), out / f"{task}-{arm}")
            score(task, arm, config, form, out)
            tabulate(out, name)
    if (out / "table.md").exists():
        print((out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
