"""``fedllm init``: a first configuration for somebody's own records."""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click
import typer

from fedllm.commands import options
from fedllm.config import Task
from fedllm.config.task import columns_read
from fedllm.errors import ConfigError, DataError
from fedllm.runs.names import RUN_TOML
from fedllm.visible import quoted, visible

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fedllm.starting.deciding import Decided
    from fedllm.starting.guessing import Guess
    from fedllm.starting.looking import Sample
    from fedllm.starting.profiles import Profile
    from fedllm.starting.wanting import Wanted

_NONE = "-"
_COLUMN = "COLUMN"


def init(
    data: str = typer.Argument(
        metavar="DATA",
        help="Your records: a .csv, .jsonl or .parquet file, a pattern, or a database's URL.",
    ),
    out: Path | None = typer.Option(
        None, metavar="FILE", help="What is written; run.toml, or with --site site.toml."
    ),
    task: str | None = typer.Option(
        None, help="What the model is for.", click_type=click.Choice(get_args(Task))
    ),
    text: str | None = typer.Option(None, metavar=_COLUMN, help="Column of the text."),
    label: str | None = typer.Option(None, metavar=_COLUMN, help="Column of the label."),
    spans: str | None = typer.Option(None, metavar=_COLUMN, help="Column of labelled parts."),
    prompt: str | None = typer.Option(None, metavar=_COLUMN, help="Column of the prompt."),
    response: str | None = typer.Option(None, metavar=_COLUMN, help="Column of the answer."),
    context: str | None = typer.Option(
        None, metavar=_COLUMN, help="Column of what a prompt is about (preferences)."
    ),
    chosen: str | None = typer.Option(
        None, metavar=_COLUMN, help="Column of the answer that was preferred."
    ),
    rejected: str | None = typer.Option(
        None, metavar=_COLUMN, help="Column of the answer that it was preferred to."
    ),
    answers: str | None = typer.Option(
        None, metavar=_COLUMN, help="Column of a list of answers, beside --ranks."
    ),
    ranks: str | None = typer.Option(None, metavar=_COLUMN, help="Column of their ranks."),
    unit: str | None = typer.Option(
        None, metavar=_COLUMN, help="Column that names the person; '-' for none."
    ),
    split_by: str | None = typer.Option(
        None, metavar=_COLUMN, help="Column that says which site a record is of; '-' for none."
    ),
    sites: int | None = typer.Option(
        None, min=2, help="Simulated sites that the file is dealt out to otherwise."
    ),
    epsilon: float | None = typer.Option(
        None, help="What the run may give away of one record or person; 8 when left out."
    ),
    model: str | None = typer.Option(
        None, metavar="DIR", help="The base model; one that is installed when left out."
    ),
    test: Path | None = typer.Option(None, metavar="FILE", help="Public test records."),
    hold_out: bool = typer.Option(
        True,
        "--hold-out/--no-hold-out",
        help="Without --test, put some records aside as a simulation's test file.",
    ),
    table: str | None = typer.Option(None, help="A database's table."),
    query: str | None = typer.Option(None, metavar="SELECT", help="Or a query of it."),
    name: str | None = typer.Option(None, help="What the run is called."),
    site: bool = typer.Option(
        False, "--site", help="Write a site's policy for a deployment instead of a run."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Take every guess, and ask nothing."),
    force: bool = typer.Option(False, "--force", help="Write over files that are there."),
    json_output: bool = options.JSON,
) -> None:
    """Write a first configuration for your own records.

    Looks at the file's first rows, guesses what its columns are, asks where it can, and writes a
    commented file with the recipe for such a run. Nothing leaves this machine, and no text of a
    record is printed. `fedllm simulate` takes what it wrote.
    """
    from fedllm.starting.deciding import decide
    from fedllm.starting.wanting import Wanted, look_at, prepare

    given = {
        role: column
        for role, column in {
            "text": text,
            "label": label,
            "spans": spans,
            "prompt": prompt,
            "response": response,
            "context": context,
            "chosen": chosen,
            "rejected": rejected,
            "answers": answers,
            "ranks": ranks,
            "unit": unit,
            "site": split_by,
        }.items()
        if column is not None
    }
    wanted = Wanted(
        data=data,
        out=out or Path("site.toml" if site else RUN_TOML),
        task=cast("Task | None", task),
        given=given,
        sites=sites,
        epsilon=epsilon,
        model=model,
        test=test,
        hold_out=hold_out and not site,
        table=table,
        query=query,
        name=name,
        for_site=site,
        force=force,
    )
    asking = not yes and _on_a_terminal()
    if not yes and not asking:
        raise ConfigError(
            "there is no terminal to ask on", "add --yes to take what is guessed, or name columns"
        )
    _check_epsilon(epsilon)
    prepare(wanted)
    sample, profiles, guess = look_at(wanted)
    if asking:
        _show_columns(sample, profiles)
        guess, wanted = _ask_until_usable(wanted, sample, profiles, guess)
    from rich.console import Console

    from fedllm.commands.plan_quality import reckoned

    with Console(stderr=True).status(
        "putting records aside, reckoning what noise leaves of training"
    ):
        made = decide(wanted, sample, profiles, guess, reckoned)
    if json_output:
        print(json.dumps(_plain(wanted, made), indent=2, ensure_ascii=False))
    else:
        _show(wanted, made)


def _on_a_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _check_epsilon(epsilon: float | None) -> None:
    if epsilon is not None and not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError("--epsilon must be a number above 0", "give for example --epsilon 8")


def _show_columns(sample: Sample, profiles: Mapping[str, Profile]) -> None:
    from rich.console import Console

    from fedllm.words import safe, table

    about = "about " if sample.about else ""
    looked = "" if sample.whole else f", of which the first {len(sample.rows):,} were looked at"
    print(f"{visible(sample.source.called)}: {about}{sample.count:,} rows{looked}")
    shown = table("column", "holds", "different", "empty")
    for name, one in profiles.items():
        shown.add_row(
            safe(name), one.holds, f"{one.distinct:,}", f"{one.empty:,}" if one.empty else ""
        )
    Console().print(shown)


def _ask_until_usable(
    wanted: Wanted, sample: Sample, profiles: Mapping[str, Profile], guess: Guess
) -> tuple[Guess, Wanted]:
    """Ask, and again after saying why the columns cannot be used; options are not asked for."""
    from fedllm.starting.checking import check_usable

    while True:
        chosen, asked = _ask(wanted, sample, profiles, guess)
        try:
            check_usable(chosen, sample, profiles)
        except DataError as error:
            if set(chosen.columns) <= set(wanted.given):
                raise
            print(f"fedllm: {error}", file=sys.stderr)
        else:
            return chosen, asked


def _ask(
    wanted: Wanted, sample: Sample, profiles: Mapping[str, Profile], guess: Guess
) -> tuple[Guess, Wanted]:
    """Ask for everything that no option said, with the guess as what Enter takes."""
    from fedllm.config.packages import locations_of_models
    from fedllm.starting.settings import sites_for
    from fedllm.starting.wanting import guess_again

    if wanted.task is None:
        task = typer.prompt(
            "What is learned", default=guess.task, type=click.Choice(get_args(Task))
        )
        guess = guess_again(wanted, profiles, cast("Task", task))
    columns = dict(guess.columns)
    for role in columns_read(guess.task):
        if role in columns and role not in wanted.given:
            columns[role] = _column(f"Column of the {role}", profiles, columns[role])
    unit, split_by = guess.unit, guess.site
    if "unit" not in wanted.given:
        unit = _column("Column that names the person (- for none)", profiles, unit)
    if "site" not in wanted.given and not wanted.for_site and wanted.sites is None:
        split_by = _column("Column of the site (- for none)", profiles, split_by)
    sites, model = wanted.sites, wanted.model
    if split_by is None and not wanted.for_site and sites is None:
        count = sites_for(sample.count)
        sites = typer.prompt("Simulated sites", default=count, type=click.IntRange(min=2))
    if model is None:
        model = typer.prompt(
            "Base model, a folder", default=next(iter(locations_of_models()), None)
        )
    epsilon = wanted.epsilon
    if epsilon is None:
        words = "Epsilon, for the life of this site" if wanted.for_site else "Epsilon of the run"
        epsilon = typer.prompt(words, default=8.0, type=click.FloatRange(min=0, min_open=True))
    guess = replace(guess, columns=columns, unit=unit, site=split_by)
    return guess, replace(wanted, epsilon=epsilon, sites=sites, model=model)


def _column(words: str, profiles: Mapping[str, Profile], default: str | None) -> Any:
    optional = "none" in words
    choices = [*profiles, *([_NONE] if optional else [])]
    found = typer.prompt(
        words,
        default=default if default is not None else _NONE,
        type=click.Choice(choices),
        show_choices=False,
    )
    return None if found == _NONE and optional else found


def _plain(wanted: Wanted, made: Decided) -> dict[str, Any]:
    return {
        "file": str(wanted.out),
        "written": [str(path) for path in made.written],
        "task": made.guess.task,
        "columns": dict(made.guess.columns),
        "unit": made.guess.unit,
        "site": made.guess.site,
        "rows": made.rows,
        "records": {"train": made.size.records, "test": made.test_records},
        "sites": made.size.sites,
        "labels": len(made.labels),
        "epsilon": made.epsilon,
        "delta": made.delta,
        "model": made.model,
        "kept": made.kept,
        "notes": list(made.notes),
        "next": _next(wanted),
    }


def _next(wanted: Wanted) -> str:
    place = shlex.quote(str(wanted.out))
    if wanted.for_site:
        return f"fedllm client check --kit KIT --policy {place}"
    return f"fedllm simulate {place}"


def _show(wanted: Wanted, made: Decided) -> None:
    guess, size = made.guess, made.size
    unit = f"person (column {quoted(guess.unit)})" if guess.unit else "record"
    by = f"by column {quoted(guess.site)}" if guess.site else "dealt out evenly"
    rows = {
        "task": guess.task,
        "columns": ", ".join(f"{role} = {quoted(name)}" for role, name in guess.columns.items()),
        "protected": f"each {unit}, epsilon {made.epsilon:g}, delta {made.delta:g}",
        "model": made.model,
    }
    if made.labels:
        rows["labels"] = f"{len(made.labels)}, which become public"
    if not wanted.for_site:
        aside = f", {made.test_records:,} put aside as test" if made.test_records else ""
        rows["records"] = f"{size.records:,} at {size.sites} sites, {by}{aside}"
    if made.kept is not None:
        rows["quality"] = (
            f"about {made.kept:.0%} of what training without privacy gains (a guide: "
            "docs/recipes.md)"
        )
    rows["written"] = ", ".join(map(str, made.written))
    for key, value in rows.items():
        print(f"  {key:<10}{visible(value)}")
    for note in made.notes:
        print(f"note: {visible(note)}")
    print(f"next: {_next(wanted)}")
