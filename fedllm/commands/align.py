"""``fedllm align``: a run's model taught by a released reward model, on public prompts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedllm.commands import options, watching
from fedllm.commands.help import CommandGroup
from fedllm.errors import InterruptedRunError
from fedllm.visible import visible

if TYPE_CHECKING:
    from fedllm.alignment.loop import Progress
    from fedllm.config.alignment import Algorithm
    from fedllm.runs.summary import Summary
    from fedllm.trackers.tensorboard import TensorBoardObserver

app = CommandGroup(
    help="Teach a run's model by a reward model, on public prompts.",
    no_args_is_help=True,
)

_FILE = typer.Argument(metavar="ALIGN.toml", help="What to align, by what (a TOML file).")
_SET = typer.Option(
    [],
    "--set",
    metavar="KEY=VALUE",
    help="Use another value than the file's, e.g. --set training.steps=20; may be repeated.",
)
_OUT = typer.Option(None, help="Folder for the results; runs/<name> when left out.")
_RESUME = typer.Option(
    False, "--resume", help="Go on with one that was broken off, after its last step."
)
_SHOWN = {
    "reward": ("reward", "{:.3f}"),
    "reward_gain": ("", "{:+.2f} sd"),
    "kl": ("KL", "{:.2f} nats"),
    "win_rate": ("wins", "{:.0%}"),
    "tokens": ("length", "{:.1f}"),
}


@app.command()
def ppo(
    file: Path = _FILE,
    override: list[str] = _SET,
    out: Path | None = _OUT,
    resume: bool = _RESUME,
    tensorboard: Path | None = watching.TENSORBOARD,
    json_output: bool = options.SUMMARY,
) -> None:
    """Align by proximal policy optimisation, with a value head.

    Reads public prompts and released models alone, so nothing is charged to any site. The folder
    is used like a run's.
    """
    _align("ppo", file, override, out, resume, tensorboard, json_output)


@app.command()
def grpo(
    file: Path = _FILE,
    override: list[str] = _SET,
    out: Path | None = _OUT,
    resume: bool = _RESUME,
    tensorboard: Path | None = watching.TENSORBOARD,
    json_output: bool = options.SUMMARY,
) -> None:
    """Align by group-relative policy optimisation.

    Answers to one prompt are compared with each other. Reads public prompts and released models
    alone, so nothing is charged to any site. The folder is used like a run's.
    """
    _align("grpo", file, override, out, resume, tensorboard, json_output)


def _align(
    algorithm: Algorithm,
    file: Path,
    override: list[str],
    out: Path | None,
    resume: bool,
    tensorboard: Path | None,
    json_output: bool,
) -> None:
    from fedllm.config.alignment import load_align_config

    config = load_align_config(file, override)
    folder = out or Path("runs") / config.name

    from fedllm.alignment.folder import check_folder

    # Before torch is loaded.
    check_folder(folder, resume)
    following = watching.trackers(tensorboard)
    from fedllm.alignment.run import run_alignment

    try:
        with _heard(json_output) as told, _tracked(told, following) as heard:
            summary = run_alignment(config, algorithm, folder, resume, heard)
    except KeyboardInterrupt:
        words = ["fedllm", "align", algorithm, str(file)]
        words += [word for one in override for word in ("--set", one)]
        for option, path in (("--out", out), ("--tensorboard", tensorboard)):
            words += [option, str(path)] if path else []
        raise InterruptedRunError(
            f"interrupted; steps that were taken are kept in {folder}",
            f"go on with: {shlex.join([*words, '--resume'])}",
        ) from None
    if json_output:
        print(json.dumps(summary.model_dump(mode="json"), indent=2))
    else:
        print(_described(summary, folder))


@contextmanager
def _heard(quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Show how far it is: a bar on a terminal, else a line a step."""
    if quiet or not sys.stderr.isatty():
        yield (lambda progress: None) if quiet else _print_step
        return
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    with Bars(console=console) as bars:
        task = bars.add_task("measuring the model", total=None)

        def told(progress: Progress) -> None:
            words = visible(_figures(progress.training or progress.measured))
            bars.update(task, completed=progress.step, total=progress.steps, description=words)
            if progress.measured or progress.note:
                console.print(visible(_line(progress)), highlight=False, markup=False)

        yield told


@contextmanager
def _tracked(
    told: Callable[[Progress], None], following: Sequence[TensorBoardObserver]
) -> Iterator[Callable[[Progress], None]]:
    """Pass each step on to the trackers, too; one that fails hears no more."""
    hearing = list(following)

    def heard(progress: Progress) -> None:
        told(progress)
        for one in list(hearing):
            try:
                one.aligned(progress.step, progress.training, progress.measured)
            except Exception as error:
                # Steps that were taken are worth more than their curves.
                hearing.remove(one)
                words = f"TensorBoard hears no more of this: {error}"
                print(f"fedllm: {visible(words)}", file=sys.stderr, flush=True)

    try:
        yield heard
    finally:
        for one in following:
            one.close()


def _print_step(progress: Progress) -> None:
    print(visible(_line(progress)), file=sys.stderr, flush=True)


def _line(progress: Progress) -> str:
    parts = [f"step {progress.step}/{progress.steps}", _figures(progress.training)]
    if progress.measured:
        parts.append(f"held out: {_figures(progress.measured)}")
    return "  ".join(filter(None, [*parts, progress.note]))


def _figures(values: Mapping[str, float]) -> str:
    told = [
        f"{words} {form.format(values[name])}".strip()
        for name, (words, form) in _SHOWN.items()
        if name in values
    ]
    faulty = sum(values.get(name, 0.0) for name in ("empty", "short", "repeated"))
    return "  ".join([*told, f"faulty {faulty:.1%}"]) if told else ""


def _described(summary: Summary, folder: Path) -> str:
    """Say the main figures in a few lines."""
    from fedllm.alignment.private_files import not_compared

    told: Mapping[str, Any] = summary.alignment
    before, after = summary.metrics_before, summary.metrics

    def both(name: str, form: str) -> str:
        values = [before.get(name), after.get(name)]
        return " -> ".join("?" if v is None else form.format(v) for v in values)

    judge = told.get("judge") or {}
    by = (
        f"by {judge.get('run') or 'the judge'}"
        if judge
        else ("by the reward model itself, which is no independent measure (reward.judge)")
    )
    count, cut = (told["prompts"][name] for name in ("test", "cut"))
    unread = told["prompts"].get("not_compared")
    kept = (
        f"the model of step {told['kept_step']}"
        if told["kept_step"]
        else "the starting model: none was better and without objection"
    )
    lines = [
        f"{summary.run}: {told['algorithm']} of {summary.rounds} steps; {told['ended']}",
        f"  kept        {kept}",
        f"  on {count} held-out prompts that nothing was chosen by",
        f"  reward      {both('reward', '{:.3f}')}: {told['reward_gain']:+.2f} standard "
        f"deviations of its start ({told['reward_gain_low']:+.2f} to "
        f"{told['reward_gain_high']:+.2f})",
        f"  win rate    {told['win_rate']:.1%} ({told['win_rate_low']:.1%} to "
        f"{told['win_rate_high']:.1%}), {by}",
        f"  KL          {after.get('kl') or 0.0:.2f} nats an answer",
        f"  length      {both('tokens', '{:.1f}')} tokens; cut {both('cut', '{:.1%}')}",
        f"  faulty      empty {both('empty', '{:.1%}')}, short {both('short', '{:.1%}')}, "
        f"repeated {both('repeated', '{:.1%}')}",
        *([f"  prompts     {cut} were too long, and lost their beginning"] if cut else []),
        *([f"  public?     {not_compared(unread)}"] if unread else []),
        "  privacy     nothing is charged, as the prompts are taken for public; what it is made of "
        f"spent {_spent(summary)}",
        f"  folder      {folder}",
    ]
    return visible("\n".join(lines), keep="\n")


def _spent(summary: Summary) -> str:
    from fedllm.privacy.accounting.words import epsilon_text
    from fedllm.runs.lineage import ancestors

    return ", ".join(
        f"{'no bound' if one.epsilon is None else f'epsilon {epsilon_text(one.epsilon)}'} "
        f"({one.run or 'a run that is not known'})"
        for one in ancestors(summary.started_from)
    )
