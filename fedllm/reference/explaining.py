"""What one key means, also where it is asked for in another spelling or without its section."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, get_args

from fedllm.config import RunConfig, Task, parse
from fedllm.errors import ConfigError
from fedllm.reference.keys import Key, as_toml, introduction, keys_of, section_of
from fedllm.reference.kinds import FILE_KINDS, FileKind

# Of a spelling that is taken for another without asking.
_SURE, _NEAR, _SHOWN = 0.8, 0.6, 5
# What a run of each task says of itself, where the recipe's values are shown.
_SHOWN_EPSILON = 8.0


@dataclass(frozen=True, slots=True)
class SectionMeaning:
    """A section of a kind of file: what it is for, and its keys."""

    kind: str
    name: str
    meaning: str
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a word stands for.

    Attributes
    ----------
    asked : str
        The word.
    taken_for : str
        The key or section that it was taken for.
    keys : tuple of Key
        The keys of that name, one for each kind of file that has it.
    sections : tuple of SectionMeaning
        The sections of that name.
    """

    asked: str
    taken_for: str
    keys: tuple[Key, ...]
    sections: tuple[SectionMeaning, ...]


def explained(asked: str, kind: FileKind | None = None) -> Explanation:
    """Find what a word stands for: ``lora.method``, ``method``, ``lora``, or nearly so.

    Parameters
    ----------
    asked : str
        A key with or without its section, or a section.
    kind : FileKind, optional
        Look there alone.

    Raises
    ------
    ConfigError
        If nothing is called so; names what is near.
    """
    kinds = FILE_KINDS if kind is None else (kind,)
    keys = [key for one in kinds for key in keys_of(one)]
    sections = [section for one in kinds for section in _sections(one)]
    names = {key.path for key in keys} | {section.name for section in sections}
    word = asked.strip().strip("[]").partition("=")[0].strip()
    for name in (word, word.lower().replace("-", "_")):
        if found := _called(name, keys, sections):
            return Explanation(asked, name, *found)
    near = _nearest(word.lower().replace("-", "_"), names, keys)
    if near and near[0][0] >= _SURE and (len(near) == 1 or near[1][0] < near[0][0]):
        name = near[0][1]
        return Explanation(asked, name, *_called(name, keys, sections))
    shown = [name for _, name in near[:_SHOWN]]
    raise ConfigError(
        f"there is no key {asked!r}",
        f"did you mean {' or '.join(shown)}?"
        if shown
        else "see docs/configuration.md, or ask for a section, such as `privacy`",
    )


def _sections(kind: FileKind) -> Iterable[SectionMeaning]:
    keys = keys_of(kind)
    for name, field in kind.model.model_fields.items():
        if (section := section_of(field)) is not None:
            inside = tuple(key for key in keys if key.section == name)
            yield SectionMeaning(kind.name, name, introduction(section), inside)


def _called(
    name: str, keys: Sequence[Key], sections: Sequence[SectionMeaning]
) -> tuple[tuple[Key, ...], tuple[SectionMeaning, ...]] | tuple[()]:
    """Return keys and sections of a name: whole names before names without their section."""
    whole = tuple(key for key in keys if key.path == name)
    named = tuple(section for section in sections if section.name == name)
    if whole or named:
        return whole, named
    alone = tuple(key for key in keys if key.name == name)
    return (alone, ()) if alone else ()


def _nearest(word: str, names: Iterable[str], keys: Sequence[Key]) -> list[tuple[float, str]]:
    """Return names with how near they are to a word, the nearest first."""
    compared = {(name, name) for name in names}
    if "." not in word:
        compared |= {(key.name, key.path) for key in keys}
    else:
        # The right key in a wrong section.
        leaf = word.rpartition(".")[2]
        compared |= {(f"{word.rpartition('.')[0]}.{leaf}", k.path) for k in keys if k.name == leaf}
    best: dict[str, float] = {}
    for form, name in compared:
        near = difflib.SequenceMatcher(None, word, form).ratio()
        if form == word and name != word:
            # Nothing but the section is wrong.
            near = 0.99
        best[name] = max(best.get(name, 0.0), near)
    return sorted(
        ((near, name) for name, near in best.items() if near >= _NEAR),
        key=lambda one: (-one[0], one[1]),
    )


@lru_cache
def recipe_values() -> dict[str, dict[str, Any]]:
    """Return, by key, what the recipe fills for a private run of each task that says no more."""
    found: dict[str, dict[str, Any]] = {}
    for task in get_args(Task):
        values = {
            "name": "any",
            "task": task,
            "model": {"path": "any"},
            "data": {"train": "any"},
            "privacy": {"epsilon": _SHOWN_EPSILON},
        }
        filled = parse(RunConfig, values, "recipe").model_dump(mode="json")
        for section, table in filled.items():
            if isinstance(table, dict):
                for name, value in table.items():
                    found.setdefault(f"{section}.{name}", {})[task] = value
    return found


def recipe_words(key: Key) -> str:
    """Say what the recipe gives a key by task, at epsilon 8 and ten sites; empty where it does not.

    Tasks that get the same are told together.
    """
    if not key.by_recipe:
        return ""
    groups: dict[str, list[str]] = {}
    for task, value in recipe_values().get(key.path, {}).items():
        groups.setdefault(as_toml(value) or "none", []).append(task)
    told = [f"{value} ({', '.join(tasks)})" for value, tasks in groups.items()]
    return "; ".join(told)
