"""A first ``run.toml`` or ``site.toml`` with a word on everything that somebody may want to change.

Of the records it holds names of columns, counts, and the labels, which a run makes public.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.config import Section, parse, parse_toml
from fedllm.config.task import smallest_unit
from fedllm.reference.keys import as_toml
from fedllm.starting.guessing import Guess
from fedllm.starting.settings import Settings, Size
from fedllm.visible import visible

_WIDTH = 98
# What of a URL is a secret; a variable of the environment is none.
_PASSWORD = re.compile(r"://[^/@:]*:([^/]*)@")
_VARIABLE = re.compile(r"\$\{[^}]*\}")
DATABASE_VARIABLE = "FEDLLM_DATABASE"
# Stands for the name of the file that is written.
_OUT = "@OUT@"
_TOLD_BY_THEMSELVES = ("model", "rounds", "training")
_EVALUATION_EPSILON, _PART_OF_EPSILON = 0.5, 8.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are, as the configuration says it.

    Attributes
    ----------
    model, train : str
        As in ``model.path`` and ``data.train``.
    test : str, optional
        As in ``data.test``.
    query : str, optional
        Of a database.
    """

    model: str
    train: str
    test: str | None = None
    query: str | None = None


def has_password(location: str) -> bool:
    """Tell whether a database's URL holds a password in clear."""
    found = _PASSWORD.search(location)
    return found is not None and _VARIABLE.fullmatch(found[1]) is None


def place(path: str, folder: Path) -> str:
    """Return how a configuration in ``folder`` names a path: relative where it is below it."""
    if "://" in path or path.startswith("package:") or "${" in path:
        return path
    absolute, base = os.path.abspath(path), os.path.abspath(folder)
    inside = os.path.commonpath([absolute, base]) == base
    return os.path.relpath(absolute, base) if inside else absolute


def run_name(text: str) -> str:
    """Return a run's name that is as near to a text as names may be."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")
    return plain[:64] or "first"


def run_toml(
    name: str,
    guess: Guess,
    places: Places,
    size: Size,
    privacy: tuple[float, float],
    settings: Settings,
    labels: Sequence[str],
    made_from: str,
    labels_are_all: bool,
) -> str:
    """Return a run's configuration, commented, that reads back without error.

    Parameters
    ----------
    privacy : tuple of float
        Epsilon and delta.
    made_from : str
        What was looked at, in words.
    labels_are_all : bool
        Whether every record was looked at for its label.

    Raises
    ------
    ConfigError
        If what was asked for does not fit together.
    """
    lines = [
        *_comment(f"Made by fedllm init from {visible(made_from)}."),
        "#",
        f"#   fedllm simulate {_OUT}{' ' * 24}the run on this machine, with simulated sites",
        f"#   fedllm privacy plan {_OUT}{' ' * 20}what it costs its sites",
        f"#   fedllm config explain KEY{' ' * 20}what a key means",
        "#",
        *_comment(
            "What is not said here follows the recipe for such a run (docs/recipes.md); run.toml "
            "in the run's folder has it in numbers."
        ),
        f"name = {as_toml(name)}",
        f"task = {as_toml(guess.task)}",
        *_model(places, settings),
        *_data(guess, places, size, labels, labels_are_all),
    ]
    for section, table in settings.sections.items():
        if section not in _TOLD_BY_THEMSELVES:
            lines += ["", f"[{section}]", *_keys(table)]
    lines += _rounds(size, settings)
    lines += _privacy(guess, privacy, size)
    if places.test is None:
        lines += _evaluation(privacy[0], settings)
    return "\n".join(lines) + "\n"


def for_file(text: str, out: Path, model: type[Section]) -> str:
    """Return a configuration's text for a file of this name, read back once.

    Raises
    ------
    ConfigError
        If it would be refused.
    """
    # The words behind a command stay below each other.
    pad = max(0, len(out.name) - len(_OUT))
    text = re.sub(rf"{_OUT}( +)", lambda m: out.name + m[1][pad:] + " " * (not m[1][pad:]), text)
    # Variables of the environment need not be set yet.
    parse(model, parse_toml(text, str(out)), str(out))
    return text


def _model(places: Places, settings: Settings) -> Iterator[str]:
    yield from ("", "[model]")
    yield from _comment("Each site needs the same files, and names its own copy in its site.toml.")
    yield from _keys({"path": places.model})
    table = dict(settings.sections.get("model", {}))
    if "max_length" in table:
        yield from _comment("Tokens kept of a record: 99 of 100 are no longer, within reason.")
        yield from _keys({"max_length": table.pop("max_length")})
    if table:
        yield from _comment("The labels are codes, so their names are no place to start.")
        yield from _keys(table)


def _data(
    guess: Guess, places: Places, size: Size, labels: Sequence[str], all_labels: bool
) -> Iterator[str]:
    yield from ("", "[data]")
    yield from _keys({"train": places.train})
    if places.query is not None:
        yield from _keys({"query": places.query})
    if places.test is not None:
        yield from _comment(
            "The test records are public: they stay with the coordinator, and its figures are of "
            "them. Records that were put aside are good for a simulation; where sites take part "
            "whose records are not yours, name a public file."
        )
        yield from _keys({"test": places.test})
    yield from _keys(guess.columns)
    if labels:
        yield from _comment(
            "Labels are public: every site is told them, and the model bears them. These were "
            "read from the records. Take out what is itself a secret, such as a name, or a "
            "diagnosis that one person has; sites leave records with other labels out of training."
            + ("" if all_labels else " Not all records were looked at: add what is missing.")
        )
        yield from _labels(labels)
    if guess.unit:
        yield from _comment("A person's records are protected together, all of them.")
        yield from _keys({"unit": guess.unit})
    if guess.site:
        yield from _keys({"site": guess.site})
    else:
        yield from _comment("The file is dealt out to so many simulated sites.")
        yield from _keys({"sites": size.sites})


def _labels(labels: Sequence[str]) -> Iterator[str]:
    one_line = f"labels = {as_toml(list(labels))}"
    if len(one_line) <= _WIDTH:
        yield one_line
        return
    yield "labels = ["
    yield from (f"  {as_toml(label)}," for label in labels)
    yield "]"


def _rounds(size: Size, settings: Settings) -> Iterator[str]:
    rounds = dict(settings.sections.get("rounds", {}))
    training = settings.sections.get("training", {})
    if rounds:
        yield from ("", "[rounds]")
        if "learning_rate" in rounds or "count" in rounds:
            yield from _comment(
                f"As `fedllm privacy plan --quality` recommends for {size.units:,} records or "
                "persons."
            )
        if "min_sites" in rounds:
            yield from _comment(
                "All sites: with fewer in a sum, each would have to add more of the noise."
            )
            yield from _keys({"min_sites": rounds.pop("min_sites")})
        yield from _keys(rounds)
    if training:
        yield from ("", "[training]")
        yield from _comment("Records of a batch at one site: the rate times what a site has.")
        yield from _keys(training)


def _privacy(guess: Guess, privacy: tuple[float, float], size: Size) -> Iterator[str]:
    unit = "person" if guess.unit else smallest_unit(guess.task)
    yield from ("", "[privacy]")
    yield from _comment(
        f"What the whole run may give away of one {unit}: smaller protects more, and costs "
        "accuracy."
    )
    yield from _keys({"epsilon": privacy[0]})
    yield from _comment(f"Below one over the {size.units:,} {unit}s.")
    yield from _keys({"delta": privacy[1]})


def _evaluation(epsilon: float, settings: Settings) -> Iterator[str]:
    rounds = settings.sections.get("rounds", {})
    yield from ("", "[evaluation]")
    yield from _comment(
        "Without public test records the sites measure the model after the last round, on records "
        "that they hold out, with noise, and out of the same epsilon."
    )
    every = int(rounds.get("evaluate_every", 1)) * 10
    yield from _keys(
        {"every": every, "epsilon": min(_EVALUATION_EPSILON, epsilon / _PART_OF_EPSILON)}
    )


def site_toml(
    guess: Guess, places: Places, size: Size, epsilon: float, delta: float, made_from: str
) -> str:
    """Return a deployed site's policy, commented, that reads back without error."""
    unit = "person" if guess.unit else smallest_unit(guess.task)
    lines = [
        *_comment(f"Made by fedllm init from {visible(made_from)}."),
        "#",
        f"#   fedllm client check --kit KIT --policy {_OUT}    try everything before the first run",
        "#",
        *_comment(
            "What this site allows, whatever a run asks for. It is never sent anywhere. "
            "docs/operators/site.md goes through it."
        ),
        "",
        "[model]",
        *_comment("This site's own copy of the base model that runs use."),
        *_keys({"path": places.model}),
        "",
        "[data]",
        *_keys({"train": places.train}),
        *(_keys({"query": places.query}) if places.query is not None else ()),
        *_keys(guess.columns),
        *(_comment("A person's records are protected together.") if guess.unit else ()),
        *(_keys({"unit": guess.unit}) if guess.unit else ()),
        "",
        "[budget]",
        *_comment("The most that all runs together may ever spend, for the life of the account."),
        *_keys({"epsilon": epsilon}),
        *_comment(
            f"Below one over the {size.units:,} {unit}s. A run with a larger one counts for more "
            "than its epsilon."
        ),
        *_keys({"delta": delta}),
        "",
        "[allow]",
        *_keys({"tasks": [guess.task]}),
        *_comment(
            "SHA-256 fingerprints of base models, as fedllm client check prints them; an empty "
            "list allows any."
        ),
        *_keys({"models": [], "min_cohort": 3}),
        *_keys({"encryption": "required", "masks": "required", "non_private": False}),
        *_comment("Refuse runs that protect less than this."),
        *_keys({"unit": unit}),
    ]
    return "\n".join(lines) + "\n"


def _keys(table: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{key} = {as_toml(value)}" for key, value in table.items())


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, _WIDTH - 2, break_long_words=False, break_on_hyphens=False):
        yield f"# {line}"
