"""Defaults that depend on each other, and on what a run is for: the recipes of docs/recipes.md.

A file that names a model, records, a task and an epsilon, and nothing else, gets what the bench
found best for such a run. It is written into the values before they are checked, so that
``run.toml`` in a run's folder, its digest and what sites are sent hold plain numbers: no later
version can read another meaning into them. What a section alone says (`LoraSection` and so on) is
older, and stays: digests of runs leave out what stands at it.

A configuration as a run's folder or a message has it, also one of an earlier version, is left as it
is: it says everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from pydantic import BaseModel

from fedllm.limits import MAX_SITES

# The noise of all rounds moves every value about as far, whatever epsilon, records and sites are:
# Adam's steps are in units of what it sees, and that is mostly noise.
_DISTANCE = 0.13
_HEAD_ROUNDS, _ADAPTER_ROUNDS = 100, 30
_SITES = 10
# Records of a site, for what its sum is divided by: Adam's steps do not depend on it, and sites
# whose batches are up to four times as large take part.
_RECORDS = 1000
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
        "training.local_steps",
        "training.batch_size",
        "training.sampling_rate",
        "training.optimizer",
        "training.learning_rate",
        "privacy.noise",
    }
)
# What every version wrote of every run.
_ALWAYS_WRITTEN = (
    ("model", "max_length"),
    ("lora", "rank"),
    ("rounds", "count"),
    ("training", "local_steps"),
    ("privacy", "delta"),
    ("encryption", "scheme"),
)


@dataclass(frozen=True)
class _Step:
    """One gradient a round from each site, and the step at the coordinator.

    Attributes
    ----------
    sampling_rate : float
        Of each record.
    learning_rate : float
        At the coordinator, of Adam; that of the head, where there is one.
    """

    sampling_rate: float
    learning_rate: float


def with_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a run's plain values with what the recipe says of keys that are not there.

    Values that are wrong are left as they are, for others to refuse.

    Parameters
    ----------
    values : mapping
        Sections are mappings, or sections that were made already.
    """
    run = _Filling(values)
    if all(key in run.given(section) for section, key in _ALWAYS_WRITTEN):
        return run.values
    classifies = values.get("task") == "classification"
    if classifies:
        _names_as_features(run)
    if _one_gradient(run):
        private = run.get("privacy", "epsilon") not in (None, "none")
        if classifies and not run.given("lora"):
            run.fill("lora", rank=0)
        _gradient_a_round(run)
        if private:
            _shared_noise(run)
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
    step = _step(run, head_alone)
    run.fill("training", local_steps=1, optimizer="sgd", learning_rate=1.0)
    if run.get("training", "sampling_rate") is None:
        run.fill("training", sampling_rate=step.sampling_rate)
    rate = run.get("training", "sampling_rate")
    if isinstance(rate, float | int):
        run.fill("training", batch_size=max(1, round(_RECORDS * rate)))
    if not {"optimizer", "learning_rate"} & run.given("rounds"):
        run.fill("rounds", optimizer="adam")
    if run.get("rounds", "optimizer") == "adam":
        run.fill("rounds", learning_rate=step.learning_rate)


def _step(run: _Filling, head_alone: bool) -> _Step:
    rounds = run.get("rounds", "count")
    count = rounds if isinstance(rounds, int) and rounds > 0 else 1
    return _Step(0.4 if head_alone else 0.1, coordinator_step(count))


def coordinator_step(rounds: int) -> float:
    """Return the step of the coordinator's Adam in a run of so many rounds, in two digits."""
    return float(f"{_DISTANCE / sqrt(rounds):.2g}")


def _shared_noise(run: _Filling) -> None:
    encryption = run.get("encryption", "scheme"), run.get("encryption", "masks")
    if encryption[0] in (None, "bfv") and encryption[1] is not False:
        run.fill("privacy", noise="distributed")
    if run.get("privacy", "noise") != "distributed" or run.get("data", "site") is not None:
        return
    # Each site adds a part of the noise that is enough for the smallest sum that may be opened:
    # where fewer than all may be in it, all together add more than is needed.
    sites = run.get("data", "sites") if "sites" in run.given("data") else _SITES
    drawn = run.get("rounds", "sites")
    smallest = min((s for s in (sites, drawn) if isinstance(s, int)), default=2)
    if 2 <= smallest <= MAX_SITES:
        run.fill("rounds", min_sites=smallest)


class _Filling:
    """A run's values by section and key, some of which are filled."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)

    def given(self, section: str) -> set[str]:
        """Return the keys of a section that have a value, were it none."""
        found = self.values.get(section)
        if isinstance(found, BaseModel):
            return set(found.model_fields_set)
        return set(found) if isinstance(found, Mapping) else set()

    def get(self, section: str, key: str) -> Any:
        """Return a key's value; None where it is not given."""
        found = self.values.get(section)
        if isinstance(found, BaseModel):
            return getattr(found, key) if key in found.model_fields_set else None
        return found.get(key) if isinstance(found, Mapping) else None

    def fill(self, section: str, **defaults: Any) -> None:
        """Give keys of a section a value, where they have none."""
        if unknown := {f"{section}.{key}" for key in defaults} - FILLED:
            raise RuntimeError(f"{unknown} is not among what may be filled")
        missing = {k: v for k, v in defaults.items() if k not in self.given(section)}
        found = self.values.get(section, {})
        if isinstance(found, BaseModel):
            self.values[section] = type(found)(
                **{**found.model_dump(exclude_unset=True), **missing}
            )
        elif isinstance(found, Mapping):
            self.values[section] = {**found, **missing}
