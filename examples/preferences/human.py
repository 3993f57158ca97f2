"""Rankings by humans: a reward model with and without privacy, beside rules that train nothing.

    python examples/preferences/human.py

Trains human.toml twice, private and clear, and asks both models, and the rules, for all pairs of
the test file: accuracy with an interval by whole ranking events, differences on the same pairs,
and which difference so few events could show at all. The same command again goes on where it was
broken off. Figures are in OUT/table.md and OUT/results.json.

Rules: the longer answer; the answer with more words of the prompt and context; and words alone, a
Bradley-Terry model of which words an answer has, trained on all training pairs in one place and
without privacy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from paired import Right, accuracy, by_scores, difference
from rules import Score, longer, overlap, unigram
from run import CLEAR, HERE, fedllm
from table import commit, machine, today

from fedllm.config import load_run_config
from fedllm.data.rankings import Ranking
from fedllm.files import write_bytes, write_json
from fedllm.runs.summary import read_summary
from fedllm.tasks import task_of

VARIANTS: dict[str, tuple[str, ...]] = {"private": (), "clear": CLEAR}


def rewards(run: Path) -> Score:
    """Return what a reward model says."""
    from fedllm.serving.reward import RewardModel

    model = RewardModel.opened(run)

    def found(ranking: Ranking) -> list[float]:
        count = len(ranking.answers)
        given = [ranking.prompt] * count, list(ranking.answers), [ranking.context] * count
        return model.score(*given).tolist()

    return found


def read(words: Sequence[str] = ()) -> tuple[list[Ranking], list[Ranking]]:
    """Return the ranking events to train on, and those to test on."""
    config = load_run_config(HERE / "human.toml", list(words))
    task = task_of(config)
    train = task.read(config.data.train, config.data)
    rows = (train, task.read_public(config.data))
    train, test = ([Ranking.read_back(one.values) for one in each] for each in rows)
    return train, test


def compared(found: dict[str, Right], training: Sequence[Ranking], sites: int) -> str:
    """Return a table, and what so few events can show."""
    shares = {name: accuracy(one) for name, one in found.items()}
    lines = "".join(f"| {name} | {one.words} |\n" for name, one in shares.items())
    pairs, events = int(found["clear"].pairs.sum()), len(found["clear"].pairs)
    less = {
        f"private less {name}": difference(found["private"], one)
        for name, one in found.items()
        if name != "private"
    }
    differences = "".join(
        f"| {name} | {one.points} | {100 * one.detectable:.1f} |\n" for name, one in less.items()
    )
    chance = 100 * shares["private"].detectable
    return (
        f"{pairs} pairs of {events} events to test on; {len(training)} events to train on, "
        f"{len(training) / sites:.0f} a site.\n\n"
        f"| who prefers | share of pairs right |\n|---|---|\n{lines}\n"
        "| difference on the same pairs | points | found with 80% |\n|---|---|---|\n"
        f"{differences}\n"
        f"With {events} events a model must be {chance:.1f} points above one half to be told from "
        "chance with a probability of 80%; the last column says the same of each difference.\n"
    )


def main() -> None:
    """Train both, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/preferences-human"))
    out: Path = parser.parse_args().out
    training, test = read()
    found = {}
    for name, words in VARIANTS.items():
        folder = out / name
        if not (folder / "summary.json").exists():
            given = [part for word in words for part in ("--set", word)]
            again = ["--resume"] if (folder / "run.toml").exists() else []
            log = out / f"logs/{name}.log"
            print(f"training {name}, which says in {log} how far it is", flush=True)
            fedllm(log, "simulate", HERE / "human.toml", *given, "--out", folder, *again)
        found[name] = by_scores(test, rewards(folder))
    rules = {"longer": longer, "overlap": overlap, "words alone": unigram(training)}
    found |= {name: by_scores(test, rule) for name, rule in rules.items()}
    found["a coin"] = by_scores(test, lambda ranking: [0.0] * len(ranking.answers))
    summary = read_summary(out / "private")
    about = {"date": today(), "commit": commit(), "machine": machine()}
    epsilon = summary.privacy["epsilon"]
    words = f"{about['date']}, commit {about['commit']}, {about['machine']}. "
    words += f"Epsilon {epsilon:.2f}, {summary.privacy['noise']} noise. Intervals are 95%.\n\n"
    text = words + compared(found, training, max(summary.sites, 1))
    write_bytes(out / "table.md", text.encode())
    rights = {name: one.written() for name, one in found.items()}
    write_json(out / "results.json", {**about, "epsilon": epsilon, "rights": rights})
    print(text)


if __name__ == "__main__":
    main()
