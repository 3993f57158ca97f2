"""Defaults that depend on each other, and on what a run is for: the recipes of docs/recipes.md.

A file that names a model, records, a task and an epsilon, and nothing else, gets what the bench
found best for such a run. It is written into the values before they are checked, so that
``run.toml`` in a run's folder, its digest and what sites are sent hold plain numbers: no later
version can read another meaning into them. What a section alone says (`LoraSection` and so on) is
older, and stays: digests of runs leave out what stands at it.

A configuration as a run's folder or a message has it is left as it is: it says everything, and
that it does (``complete``). One of an earlier version, which does not say so, is known by the many
keys that all of them wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, sqrt
from typing import Any

from pydantic import BaseModel, ValidationError

from fedllm.config.data import DataSection
from fedllm.config.encryption import EncryptionSection
from fedllm.config.model import LoraSection, ModelSection
from fedllm.config.preference import PreferenceSection
from fedllm.config.privacy import PrivacySection
from fedllm.config.rounds import RoundsSection
from fedllm.config.section import Section
from fedllm.config.training import TrainingSection
from fedllm.limits import MAX_SITES

# The noise of all rounds moves every value about as far, whatever epsilon, records and sites are:
# Adam's steps are in units of what it sees, and that is mostly noise. Below 1 / _HEARD records
# times epsilon the steps are smaller, since noise is nearly all that it sees.
_DISTANCE, _ADAPTER_DISTANCE, _HEARD = 0.13, 0.055, 2e-4
# Muon moves a matrix in all directions alike, which takes shorter steps.
_OF_ADAM = {"adam": 1.0, "muon": 0.25}
_HEAD_ROUNDS, _ADAPTER_ROUNDS = 100, 30
_HEAD_RATE, _ADAPTER_RATE = 0.4, 0.1
_SITES = 10
# Records of a site, for what its sum is divided by: Adam's steps do not depend on it, and sites
# whose batches are up to four times as large take part.
_RECORDS = 1000
_WITH_HEADS = ("classification", "token_classification")
# A sum of fewer sites is none.
_FEWEST = 2
# What may be filled.
FILLED = frozenset(
    {
        "model.head_start",
        "model.feature_center",
        "lora.rank",
        "rounds.count",
        "rounds.min_sites",
        "rounds.optimizer",
        "rounds.learning_rate",
        "rounds.head_learning_rate",
        "training.local_steps",
        "training.batch_size",
        "training.sampling_rate",
        "training.optimizer",
        "training.learning_rate",
        "privacy.noise",
    }
)
# What is read here.
_SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelSection,
    "data": DataSection,
    "preference": PreferenceSection,
    "lora": LoraSection,
    "rounds": RoundsSection,
    "training": TrainingSection,
    "privacy": PrivacySection,
    "encryption": EncryptionSection,
}
# What every version wrote of every run, until they said that they had written everything.
_WRITTEN_BEFORE: Mapping[str, frozenset[str]] = {
    "model": frozenset({"path", "max_length", "pooling", "feature_scale"}),
    "lora": frozenset({"rank", "alpha"}),
    "rounds": frozenset({"count", "min_sites", "optimizer", "learning_rate"}),
    "training": frozenset({"local_steps", "batch_size", "optimizer"}),
    "privacy": frozenset({"delta", "noise"}),
    "encryption": frozenset({"scheme", "bits"}),
}


def with_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's plain values with what the recipe says of keys that are not there.

    They say afterwards that they are complete. Where any value is wrong nothing is filled, and it
    is left for others to refuse.

    Parameters
    ----------
    values : mapping
        Sections are mappings, or sections that were made already.
    """
    run = _Filling(values)
    if values.get("complete") not in (None, False) or not run.readable:
        return run.values
    run.values["complete"] = True
    if all(keys <= run.given(section) for section, keys in _WRITTEN_BEFORE.items()):
        return run.values
    classifies = values.get("task") == "classification"
    if classifies:
        _names_as_features(run)
    if _one_gradient(run):
        if classifies and not run.given("lora"):
            run.fill("lora", rank=0)
        if run.get("privacy", "epsilon") is not None:
            _shared_noise(run)
        _gradient_a_round(run)
    return run.values


def _names_as_features(run: _Filling) -> None:
    run.fill("model", head_start="label_names")
    if run.get("model", "feature_scale") != 0:
        run.fill("model", feature_center="label_names")


def _one_gradient(run: _Filling) -> bool:
    """Tell whether nothing that is said speaks against one gradient a round.

    Otherwise sites train by themselves: steps of Adam, averaged, as the sections say.
    """
    training = run.given("training")
    if "optimizer" not in training and {"learning_rate", "head_learning_rate"} & training:
        # A rate of the site's own optimiser, which is Adam where no other is named.
        return False
    return (
        run.get("training", "local_steps") in (None, 1)
        and run.get("training", "optimizer") in (None, "sgd")
        and not ("batch_size" in training and run.get("training", "sampling_rate") is None)
        and run.get("privacy", "unit") in (None, "record")
        and run.get("privacy", "clipping_quantile") is None
    )


def _gradient_a_round(run: _Filling) -> None:
    head_alone = run.get("lora", "rank") == 0
    run.fill("rounds", count=_HEAD_ROUNDS if head_alone else _ADAPTER_ROUNDS)
    run.fill("training", local_steps=1, optimizer="sgd", learning_rate=1.0)
    if run.get("training", "sampling_rate") is None:
        run.fill("training", sampling_rate=_HEAD_RATE if head_alone else _ADAPTER_RATE)
    rate = run.get("training", "sampling_rate")
    if rate is not None:
        run.fill("training", batch_size=max(1, round(_RECORDS * rate)))
    if not {"optimizer", "learning_rate"} & run.given("rounds"):
        run.fill("rounds", optimizer="adam")
    count = run.get("rounds", "count")
    part = _OF_ADAM.get(run.get("rounds", "optimizer"))
    if part is not None and "learning_rate" not in run.given("rounds"):
        noise = run.get("privacy", "epsilon"), _records(run)
        if not head_alone and _trains_a_head(run):
            run.fill("rounds", head_learning_rate=part * coordinator_step(count, *noise))
        step = coordinator_step(count, *noise, adapters=not head_alone)
        run.fill("rounds", learning_rate=part * step)


def _trains_a_head(run: _Filling) -> bool:
    if run.values.get("task") == "preference":
        return run.get("preference", "objective") == "reward"
    return run.values.get("task") in _WITH_HEADS


def _records(run: _Filling) -> float:
    """Return how many records a run might have, as far as noise counts."""
    many = min(run.get("data", "sites") or _SITES, MAX_SITES)
    shared = run.get("privacy", "noise") == "distributed"
    return _RECORDS * (many if shared else sqrt(many))


def coordinator_step(
    rounds: int, epsilon: float | None = None, records: float = inf, adapters: bool = False
) -> float:
    """Return the step of the coordinator's Adam, in two digits.

    Over all rounds noise moves a value as far as the root of their number. Where the noise drowns
    the signal, as much less as it does: Adam's steps are in units of what it sees, and would go as
    far on noise alone.

    Parameters
    ----------
    rounds : int
        Of the whole run.
    epsilon : float, optional
        None without privacy.
    records : float
        Of all sites together; over the root of the sites where each adds the whole noise.
    adapters : bool
        For what is in the layers, and not for a head on them.
    """
    step = (_ADAPTER_DISTANCE if adapters else _DISTANCE) / sqrt(rounds)
    heard = 1.0 if epsilon is None else min(1.0, _HEARD * epsilon * records)
    return float(f"{step * heard:.2g}")


def _shared_noise(run: _Filling) -> None:
    if run.get("lora", "ranks"):
        # They need the sizes that sites announce with local noise.
        return
    encryption = run.get("encryption", "scheme"), run.get("encryption", "masks")
    if encryption[0] in (None, "bfv") and encryption[1] is not False:
        run.fill("privacy", noise="distributed")
    if run.get("privacy", "noise") != "distributed" or run.get("data", "site") is not None:
        return
    # Each site adds a part of the noise that is enough for the smallest sum that may be opened:
    # where fewer than all may be in it, all together add more than is needed.
    # One sum holds no more than so many.
    sites = min(run.get("data", "sites") or _SITES, MAX_SITES)
    smallest = min(sites, run.get("rounds", "sites") or sites)
    if smallest >= _FEWEST:
        run.fill("rounds", min_sites=smallest)


class _Filling:
    """A run's values by section and key, some of which are filled."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self._read: dict[str, Section] = {}
        for name in _SECTIONS:
            self._see(name)

    @property
    def readable(self) -> bool:
        """Whether all sections that are there hold what they may."""
        return all(name in self._read for name in _SECTIONS if name in self.values)

    def given(self, section: str) -> set[str]:
        """Return the keys of a section that have a value, were it none."""
        found = self._read.get(section)
        return set() if found is None else set(found.model_fields_set)

    def get(self, section: str, key: str) -> Any:
        """Return a key's value as the section takes it; None where it is not given."""
        return getattr(self._read[section], key) if key in self.given(section) else None

    def fill(self, section: str, **defaults: Any) -> None:
        """Give keys of a section a value, where they have none."""
        if unknown := {f"{section}.{key}" for key in defaults} - FILLED:
            raise RuntimeError(f"{unknown} is not among what may be filled")
        missing = {k: v for k, v in defaults.items() if k not in self.given(section)}
        found = self.values.get(section, {})
        if isinstance(found, BaseModel):
            found = found.model_dump(exclude_unset=True)
        if isinstance(found, Mapping):
            self.values[section] = {**found, **missing}
            self._see(section)

    def _see(self, name: str) -> None:
        """Read a section as the run will: what is said there may be spelled in several ways."""
        found = self.values.get(name)
        if found is None:
            return
        try:
            self._read[name] = _SECTIONS[name].model_validate(found)
        except (ValidationError, OverflowError):
            self._read.pop(name, None)
