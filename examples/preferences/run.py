"""The whole chain: a base, instruction tuning, reward models, PPO, GRPO and DPO, in one table.

    python examples/preferences/run.py --quick
    python examples/preferences/run.py --clear

Without `--clear` every federated run is private (epsilon 8 each); with it the same is run without
privacy beside them, and what one bank gets by itself. Each step is a command of fedllm in a folder
of its own, and says into OUT/logs what it does; steps that do not wait for each other run side by
side. The same command again goes on where it was broken off, and runs nothing twice. Every figure
of OUT/table.md and OUT/results.json is read from the runs' summary.json and from OUT/scores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from prepare import prepare
from side_by_side import Job, side_by_side
from table import write_table

from fedllm.files import write_bytes, write_json

HERE = Path(__file__).resolve().parent
CLEAR = ("privacy.epsilon=", "privacy.noise=local")
ANSWERS, NEW_TOKENS = 4, 40
# What is run, in this order; what writes is scored.
CHAIN = ("taught", "reward", "judge", "grpo", "ppo", "dpo", "selector", "selected")
WRITES = ("taught", "grpo", "ppo", "dpo", "selected")
# What is compared on the same pairs of answers.
TELLS = ("reward", "dpo", "selector", "selected")
VARIANTS = {"private": CHAIN, "clear": CHAIN, "alone": ("taught", "reward", "dpo")}


@dataclass(frozen=True)
class Form:
    """How much is done.

    Attributes
    ----------
    every : int
        Each so manyeth ranking, answer and text is used.
    pretraining : tuple of str
        What pretraining has otherwise than its file, as --set takes it.
    rounds : dict
        Of runs, by name; as their files say where one is missing.
    banks : int
        Who take part.
    compared : int
        Rankings that models which tell answers apart are asked.
    align : tuple of str
        What an alignment has otherwise than its file.
    """

    every: int = 1
    pretraining: tuple[str, ...] = ()
    rounds: dict[str, int] = field(default_factory=dict)
    banks: int = 10
    compared: int = 2000
    align: tuple[str, ...] = ()


FORMS = {
    "full": Form(),
    "quick": Form(
        every=4,
        pretraining=("training.tokens=300_000",),
        rounds={"reward": 20, "judge": 20, "selector": 10},
        align=("training.steps=20",),
    ),
    # That all of it runs, and nothing else.
    "tiny": Form(
        every=100,
        pretraining=("training.tokens=20_000",),
        rounds=dict.fromkeys(CHAIN, 1),
        banks=2,
        compared=20,
        align=(
            "training.steps=1",
            "training.prompts=2",
            "answers.per_prompt=2",
            "answers.new_tokens=8",
            "prompts.selection=4",
            "prompts.test=4",
        ),
    ),
}


def file_of(step: str) -> Path:
    """Return the configuration that a step begins with."""
    name = {"judge": "reward", "selected": "dpo", "grpo": "align_grpo", "ppo": "align_ppo"}
    return HERE / f"{name.get(step, step)}.toml"


def settings(out: Path, variant: str, step: str, form: Form) -> list[str]:
    """Return what a step has otherwise than its file, as --set takes it."""

    def path(*parts: str) -> str:
        return json.dumps(str(out.absolute().joinpath(*parts)))

    words: dict[str, Any] = {"name": f"preferences-{variant}-{step}"}
    if step in ("grpo", "ppo"):
        words |= {
            "model.start": path(f"{variant}-taught"),
            "reward.run": path(f"{variant}-reward"),
            "reward.judge": path(f"{variant}-judge"),
            "prompts.file": path("data", "prompts.jsonl"),
        }
        return [*_pairs(words), *form.align]
    train = {"taught": "taught", "judge": "test"}.get(step, "train")
    if variant == "alone":
        train = {"taught": "alone_taught"}.get(step, "alone")
    words["data.train"] = path("data", f"{train}.jsonl")
    if step == "selected":
        words["data.train"] = path(f"{variant}-public.jsonl")
    if step not in ("reward", "judge"):
        words["model.path"] = path("base", "model")
    if step in ("dpo", "selected"):
        words["model.start"] = path(f"{variant}-taught")
    if step == "judge":
        words["seed"] = 1
    if step != "taught":
        # All are asked the rankings of compared.jsonl when they are finished.
        words["data.test"] = ""
    # Without privacy a run needs two sites still: a step on both halves is one on the whole.
    alone = variant == "alone" or step == "selected"
    banks = 2 if alone else form.banks
    words |= {"data.sites": banks, "rounds.min_sites": banks}
    words |= _sizes(out, step, train, banks, alone)
    if step in form.rounds:
        words["rounds.count"] = form.rounds[step]
    clear = variant != "private" or step == "selected"
    return [*_pairs(words), *(CLEAR if clear else ())]


def _pairs(words: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in words.items()]


def _sizes(out: Path, step: str, train: str, banks: int, alone: bool) -> dict[str, Any]:
    """Return how many records a bank's step takes: the file's share, and more of few records."""
    values = tomllib.loads(file_of(step).read_text(encoding="utf-8"))["training"]
    rate = float(values["sampling_rate"])
    place = out / "data" / f"{train}.jsonl"
    if step == "selected":
        place = out / "data" / "prompts.jsonl"
    with place.open(encoding="utf-8") as file:
        count = sum(1 for _ in file)
    if alone:
        # A tenth of the records in steps of the same share is too few to learn from at all.
        rate = min(1.0, 4 * rate)
    return {
        "training.sampling_rate": rate,
        "training.batch_size": max(1, round(rate * count / banks)),
    }


def fedllm(log: Path, *words: str | Path) -> None:
    """Run a command; what it says goes into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        command = [sys.executable, "-m", "fedllm", *map(str, words)]
        done = subprocess.run(command, stdout=file, stderr=file, check=False)
    if done.returncode:
        last = log.read_text(encoding="utf-8").splitlines()[-5:]
        sys.exit("\n".join([*last, f"the whole of it is in {log}"]))


def _set(words: tuple[str, ...] | list[str]) -> list[str]:
    return [part for word in words for part in ("--set", word)]


def pretrained(out: Path, form: Form) -> None:
    """Pretrain the base, unless that was done."""
    folder = out / "base"
    if (folder / "summary.json").exists() and (folder / "model" / "config.json").exists():
        return
    corpus = json.dumps(str((out / "data/corpus.jsonl").absolute()))
    words = _set([f"data.train={corpus}", *form.pretraining])
    again = ["--resume"] if folder.exists() else []
    fedllm(
        out / "logs/base.log", "pretrain", HERE / "pretrain.toml", *words, "--out", folder, *again
    )


def take(out: Path, variant: str, step: str, form: Form) -> None:
    """Take a step, go on with it, or find it finished."""
    folder = out / f"{variant}-{step}"
    if (folder / "summary.json").exists() and (folder / "adapter" / "README.md").exists():
        return
    if step == "selected":
        public_rankings(out, variant, form)
    command = ["align", step] if step in ("grpo", "ppo") else ["simulate"]
    begun = any((folder / name).exists() for name in ("run.toml", "align.toml"))
    words = _set(settings(out, variant, step, form))
    again = ["--resume"] if begun else []
    fedllm(_log(out, variant, step), *command, file_of(step), *words, "--out", folder, *again)


def _log(out: Path, variant: str, step: str) -> Path:
    return out / "logs" / f"{variant}-{step}.log"


def public_rankings(out: Path, variant: str, form: Form) -> None:
    """Let the released selector rank answers to public prompts: a file that is nobody's."""
    asked, said, done = (
        out / f"{variant}-{name}.jsonl" for name in ("asked", "verdicts", "public")
    )
    if done.exists():
        return
    from score import several_answers

    taught = out / f"{variant}-taught"
    rows = several_answers(taught, out / "data/prompts.jsonl", ANSWERS, new_tokens(form))
    if not rows:
        sys.exit(f"{taught} gives no two different answers to any prompt")
    write_bytes(asked, _lines(rows))
    log = _log(out, variant, "selected")
    fedllm(log, "predict", out / f"{variant}-selector", asked, "--out", said, "--json")
    ranks = {row["row"]: row["ranks"] for row in read(said)}
    write_bytes(done, _lines([{**row, "ranks": ranks[n]} for n, row in enumerate(rows, 1)]))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON Lines."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


def new_tokens(form: Form) -> int:
    """Return how long an answer is at most."""
    found = [word.split("=")[1] for word in form.align if word.startswith("answers.new_tokens=")]
    return int(found[0]) if found else NEW_TOKENS


def score(out: Path, variant: str, step: str, form: Form) -> None:
    """Ask a model what nothing was learned from, unless that was done."""
    path = out / "scores" / f"{variant}-{step}.json"
    if path.exists() or step not in WRITES:
        return
    from score import scored

    # Who is alone has no judge: that of the others without privacy judges.
    judge = "clear" if variant == "alone" else variant
    folders = [out / name for name in (f"{variant}-{step}", f"{variant}-taught", f"{judge}-judge")]
    found = scored(*folders, out / "data/asked.jsonl", new_tokens(form))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)


def compare(out: Path, step: str, variants: Sequence[str], form: Form) -> None:
    """Look which pairs of compared.jsonl each variant gets right, unless that was done."""
    runs = {one: out / f"{one}-{step}" for one in variants if step in VARIANTS[one]}
    path = out / "scores" / f"pairs-{step}.json"
    if path.exists() and runs.keys() <= json.loads(path.read_text(encoding="utf-8")).keys():
        return
    from score import rights

    told = rights(list(runs.values()), out / "data/compared.jsonl", form.compared)
    found = dict(zip(runs, told, strict=True))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {name: one.written() for name, one in found.items()})


def rules(out: Path, form: Form) -> None:
    """Look which of the same pairs rules get right that train nothing, and words alone."""
    path = out / "scores" / "pairs-rules.json"
    if path.exists():
        return
    from paired import by_scores
    from rules import longer, overlap, unigram
    from score import rankings

    test = rankings(out / "data/compared.jsonl")[: form.compared]
    words_alone = unigram(rankings(out / "data/train.jsonl"))
    asked = {"longer": longer, "overlap": overlap, "words alone": words_alone}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {name: by_scores(test, rule).written() for name, rule in asked.items()})


def steps(clear: bool) -> list[tuple[str, str]]:
    """Return variants and their steps."""
    variants = VARIANTS if clear else ("private",)
    return [(variant, step) for variant in variants for step in VARIANTS[variant]]


def needs(variant: str, step: str) -> tuple[str, ...]:
    """Return what a step waits for."""
    before = {
        "taught": (),
        "reward": (),
        "judge": (),
        "grpo": ("taught", "reward", "judge"),
        "ppo": ("taught", "reward", "judge"),
        "dpo": ("taught",),
        "selector": (),
        "selected": ("taught", "selector"),
    }[step]
    reads_base = step in ("taught", "selector")
    return (*(f"{variant}-{one}" for one in before), *(("base",) if reads_base else ()))


def jobs(out: Path, clear: bool, form: Form) -> list[Job]:
    """Return all that is done, what others wait for first."""
    asked = steps(clear)
    # What takes longest, and what most others wait for.
    order = ("taught", "reward", "judge", "dpo", "selector", "grpo", "ppo", "selected")
    asked.sort(key=lambda one: order.index(one[1]))
    found = [Job("base", partial(pretrained, out, form))]
    found += [
        Job(f"{variant}-{step}", partial(take, out, variant, step, form), needs(variant, step))
        for variant, step in asked
    ]
    for variant, step in asked:
        if step in WRITES:
            judge = "clear" if variant == "alone" else variant
            models = tuple(dict.fromkeys((f"{variant}-taught", f"{variant}-{step}")))
            work = partial(score, out, variant, step, form)
            found.append(Job(f"answers of {variant}-{step}", work, (*models, f"{judge}-judge")))
    variants = tuple(VARIANTS) if clear else ("private",)
    for step in TELLS:
        runs = tuple(f"{one}-{step}" for one in variants if step in VARIANTS[one])
        found.append(Job(f"pairs by {step}", partial(compare, out, step, variants, form), runs))
    return [*found, Job("pairs by rules", partial(rules, out, form))]


def main() -> None:
    """Take all steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, what in (
        ("quick", "a quarter of the records, fewer steps"),
        ("tiny", "hardly any of either: shows that all of it runs, and nothing else"),
    ):
        parser.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=what)
    parser.add_argument(
        "--clear", action="store_true", help="run it without privacy too, and one bank alone"
    )
    parser.add_argument("--out", type=Path, help="runs/preferences-FORM when left out")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--jobs", type=int, default=min(2, cores), help="steps at once (2); about 1.5 GiB each"
    )
    arguments = parser.parse_args()
    name = arguments.form or "full"
    form, out = FORMS[name], arguments.out or Path("runs") / f"preferences-{name}"
    began = time.monotonic()
    if not (out / "data" / "corpus.jsonl").exists():
        prepare(out / "data", form.every)
    # Beside each other, two steps of one thread each are quicker than one of two after another.
    threads = max(1, cores // arguments.jobs)
    side_by_side(jobs(out, arguments.clear, form), arguments.jobs, threads)
    write_table(out, name, steps(clear=True))
    print((out / "table.md").read_text(encoding="utf-8"))
    print(f"this call took {(time.monotonic() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
