"""The whole chain: a base, instruction tuning, reward models, PPO, GRPO and DPO, in one table.

    python examples/preferences/run.py --quick
    python examples/preferences/run.py --clear

Without `--clear` every federated run is private (epsilon 8 each); with it the same is run without
privacy beside them, and what one bank gets by itself. Each step is a command of fedllm in a folder
of its own: the same command again goes on where it was broken off, and runs nothing twice. Every
figure of OUT/table.md and OUT/results.json is read from the runs' summary.json and from OUT/scores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prepare import prepare
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
    test : int
        Rankings of the test file that pairwise accuracy is told by.
    compared : int
        Rankings on which variants are compared.
    align : tuple of str
        What an alignment has otherwise than its file.
    """

    every: int = 1
    pretraining: tuple[str, ...] = ()
    rounds: dict[str, int] = field(default_factory=dict)
    banks: int = 10
    test: int = 2000
    compared: int = 2000
    align: tuple[str, ...] = ()


FORMS = {
    "full": Form(),
    "quick": Form(
        every=4,
        pretraining=("training.tokens=300_000",),
        rounds={"taught": 6, "reward": 20, "judge": 20, "selector": 8, "selected": 8},
        test=300,
        align=("training.steps=36", "prompts.selection=32", "prompts.test=64"),
    ),
    # That all of it runs, and nothing else.
    "tiny": Form(
        every=100,
        pretraining=("training.tokens=20_000",),
        rounds=dict.fromkeys(CHAIN, 1),
        banks=2,
        test=8,
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
    if step in ("dpo", "selector", "selected"):
        words["model.start"] = path(f"{variant}-taught")
    if step == "judge":
        words |= {"seed": 1, "data.test": ""}
    elif step != "taught":
        words |= {"data.test": path("data", "test.jsonl"), "data.test_limit": form.test}
    # Without privacy a run needs two sites still: a step on both halves is one on the whole.
    alone = variant == "alone" or step == "selected"
    banks = 2 if alone else form.banks
    words |= {"data.sites": banks, "rounds.min_sites": banks}
    words |= _sizes(out, step, train, banks, alone)
    if step in form.rounds:
        words |= {"rounds.count": form.rounds[step]}
        if step != "taught":
            words["rounds.evaluate_every"] = max(1, form.rounds[step] // 2)
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


def fedllm(*words: str | Path) -> None:
    """Run a command; it says itself what is wrong."""
    done = subprocess.run([sys.executable, "-m", "fedllm", *map(str, words)], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _set(words: tuple[str, ...] | list[str]) -> list[str]:
    return [part for word in words for part in ("--set", word)]


def pretrained(out: Path, form: Form) -> None:
    """Pretrain the base, unless that was done."""
    folder = out / "base"
    corpus = json.dumps(str((out / "data/corpus.jsonl").absolute()))
    words = _set([f"data.train={corpus}", *form.pretraining])
    again = ["--resume"] if folder.exists() else []
    fedllm("pretrain", HERE / "pretrain.toml", *words, "--out", folder, *again)


def take(out: Path, variant: str, step: str, form: Form) -> None:
    """Take a step, go on with it, or find it finished."""
    folder = out / f"{variant}-{step}"
    if (folder / "summary.json").exists() and (folder / "adapter" / "README.md").exists():
        print(f"{folder} is finished already", flush=True)
        return
    if step == "selected":
        public_rankings(out, variant, form)
    command = ["align", step] if step in ("grpo", "ppo") else ["simulate"]
    begun = any((folder / name).exists() for name in ("run.toml", "align.toml"))
    words = _set(settings(out, variant, step, form))
    again = ["--resume"] if begun else []
    fedllm(*command, file_of(step), *words, "--out", folder, *again)


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
    fedllm("predict", out / f"{variant}-selector", asked, "--out", said, "--json")
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


def compare(out: Path, step: str, variants: Iterable[str], form: Form) -> None:
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


def steps(clear: bool) -> list[tuple[str, str]]:
    """Return variants and steps, in the order in which they are taken."""
    variants = VARIANTS if clear else ("private",)
    return [(variant, step) for variant in variants for step in VARIANTS[variant]]


def main() -> None:
    """Take all steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", dest="form", action="store_const", const="quick")
    parser.add_argument("--tiny", dest="form", action="store_const", const="tiny")
    parser.add_argument(
        "--clear", action="store_true", help="run it without privacy too, and one bank alone"
    )
    parser.add_argument("--out", type=Path, help="runs/preferences-FORM when left out")
    arguments = parser.parse_args()
    name = arguments.form or "full"
    form, out = FORMS[name], arguments.out or Path("runs") / f"preferences-{name}"
    if not (out / "data" / "corpus.jsonl").exists():
        prepare(out / "data", form.every)
    pretrained(out, form)
    for variant, step in steps(arguments.clear):
        print(f"\n== {variant}, {step}", flush=True)
        take(out, variant, step, form)
    for variant, step in steps(arguments.clear):
        score(out, variant, step, form)
    for step in TELLS:
        compare(out, step, VARIANTS if arguments.clear else ("private",), form)
    write_table(out, name, steps(clear=True))
    print((out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
