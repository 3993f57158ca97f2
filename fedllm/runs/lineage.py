"""The runs that a run goes back to: the one of ``model.start``, the one that that began with, ...

What is released of a run tells of the records of all of them, and what it holds out may have been
trained on in any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from fedllm.config import RunConfig

# In `Summary.started_from`.
CHAIN = "chain"
# Who is bounded, each with all that is smaller.
_UNITS: Mapping[str, int] = {"record": 0, "person": 1, "site": 2}


class Ancestor(BaseModel):
    """An earlier run, as far as it is known; one of which nothing is known has no name.

    Attributes
    ----------
    run, run_id : str
        Its name, and its random identifier.
    epsilon, delta : float, optional
        What it spent at most; no epsilon without a bound.
    unit : str
        What one unit of its privacy was.
    task : str
        What it trained for.
    held_out : float
        Part of each site's units that it did not train on; 0 where that is not known.
    simulated : bool
        Whether it was a simulation, whose sites had keys of their own, and so held out other
        records than those of any other run.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    run: str = ""
    run_id: str = ""
    epsilon: float | None = None
    delta: float | None = None
    unit: str = ""
    task: str = ""
    held_out: float = 0.0
    simulated: bool = False


def ancestors(started_from: Mapping[str, Any]) -> tuple[Ancestor, ...]:
    """Return the runs that a run goes back to, the nearest first; none where it began untrained.

    Parameters
    ----------
    started_from : mapping
        Of the run's summary. One of an earlier version names the nearest alone: what that one
        began with is not known.
    """
    if not started_from:
        return ()
    links = started_from.get(CHAIN)
    if not isinstance(links, list):
        links = [started_from, {}] if started_from.get("run") else [{}]
    return tuple(map(_ancestor, links)) or (Ancestor(),)


def link(
    summary: Mapping[str, Any], privacy: Mapping[str, Any], config: RunConfig | None
) -> dict[str, Any]:
    """Return what a chain says of one run, from its summary and, where it is there, run.toml."""
    held_out = config.evaluation.holdout if config and config.evaluation.every else 0.0
    return Ancestor(
        **{key: summary[key] for key in ("run", "run_id", "task", "simulated")},
        **{key: privacy.get(key) for key in ("epsilon", "delta")},
        unit=str(privacy.get("unit") or ""),
        held_out=held_out,
    ).model_dump(mode="json")


def spent_together(earlier: Sequence[Ancestor], unit: str) -> float | None:
    """Return the sum of the epsilons; None where one is not known, or does not bound such a unit.

    Parameters
    ----------
    unit : {"record", "person", "site"}
        Of the later run. What bounds a record alone says nothing of a person.
    """
    smallest = _UNITS.get(unit, max(_UNITS.values()))
    known = [
        one.epsilon
        for one in earlier
        if one.epsilon is not None and _UNITS.get(one.unit, -1) >= smallest
    ]
    return sum(known) if len(known) == len(earlier) else None


def may_have_trained(
    earlier: Sequence[Ancestor], config: RunConfig, simulated: bool
) -> tuple[Ancestor, ...]:
    """Return the earlier runs that may have trained on records that a run holds out.

    The same key holds the same records out where task and unit are the same, and all of a smaller
    share are in a larger one.

    Parameters
    ----------
    config : RunConfig
        The later run's.
    simulated : bool
        Whether that one was a simulation.
    """
    return tuple(
        one
        for one in earlier
        if simulated
        or one.simulated
        or one.held_out < config.evaluation.holdout
        or (one.task, one.unit) != (config.task, config.unit)
    )


def names(earlier: Sequence[Ancestor], unknown: str) -> str:
    """Return the runs' names; ``unknown`` stands for one that has none."""
    return ", ".join(one.run or unknown for one in earlier)


def _ancestor(values: Any) -> Ancestor:
    try:
        return Ancestor.model_validate(values)
    except ValidationError:
        return Ancestor()
