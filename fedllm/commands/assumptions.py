"""What a privacy plan takes for granted, in words, and how to change each of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt

from fedllm.config import RunConfig


def of_options(assumed: Mapping[str, object]) -> list[str]:
    """Say what a plan without a run assumes.

    Parameters
    ----------
    assumed : mapping of str to object
        Options that were not given, without their dashes, and the values taken instead.
    """
    taken = ", ".join(f"--{name} {value}" for name, value in assumed.items())
    return [
        *([f"not given, and taken as {taken}: change them with these options"] if taken else []),
        "each step draws each record with the probability batch / records, and each site adds the "
        "whole noise by itself; for what a run does in fact, name its RUN.toml",
        "no round has to be repeated: an attempt that fails is charged, too",
    ]


def of_run(config: RunConfig, sizes: Sequence[int], given: bool) -> list[str]:
    """Say what a plan of a run assumes.

    Parameters
    ----------
    config : RunConfig
        The run.
    sizes : sequence of int
        Units at a site that it was planned for.
    given : bool
        Whether somebody named these sizes.
    """
    rounds = config.rounds
    words = [_sizes(config, sizes, given)]
    if rounds.sites is not None:
        words.append(
            f"a site is in all {rounds.count} rounds, the most that it can spend, though "
            f"rounds.sites = {rounds.sites} draws some sites for each"
        )
    words.append("no round has to be repeated: an attempt that fails is charged, too")
    if config.private:
        words.append(
            f"delta is {config.privacy.delta:g} (change it with --set privacy.delta=...), and the "
            "sampling rate follows from "
            + ("training.batch_size" if _own_rate(config) else "training.sampling_rate")
        )
        words += _shares(config)
        if config.unit != "site":
            words.append(
                f"a {config.unit} is at one site alone; whoever has records at several of them is "
                "protected less (docs/threat-model.md has numbers)"
            )
    return words


def _own_rate(config: RunConfig) -> bool:
    return config.training.sampling_rate is None


def _sizes(config: RunConfig, sizes: Sequence[int], given: bool) -> str:
    if config.unit == "site":
        return "a unit is a whole site, so the number of its records changes nothing"
    from fedllm.mechanisms import mechanism_of

    counts = ", ".join(map(str, sizes))
    source = "given" if given else "assumed, for the run does not say it"
    announced = {size: mechanism_of(config).announced_units(size) for size in sizes}
    rounded = [f"{size} as {said}" for size, said in announced.items() if said and said != size]
    reckoned = f"; reckoned as a site announces them, {', '.join(rounded)}" if rounded else ""
    return (
        f"a site holds {counts} {config.unit}s ({source}; change it with --records; "
        f"`fedllm client check` counts a site's){reckoned}"
    )


def _shares(config: RunConfig) -> list[str]:
    from fedllm.mechanisms import mechanism_of

    mechanism = mechanism_of(config)
    words = []
    if mechanism.colluders is not None:
        words.append(
            f"{mechanism.shares} sites add their shares of the noise: rounds.min_sites = "
            f"{config.rounds.min_sites} less privacy.colluders = {mechanism.colluders}"
        )
        words.append(
            "against colluders (everyone else together) nothing limits a site's loss unless its "
            "policy sets budget.colluders_epsilon; what stands here is what to set it above"
        )
    if count := len(tuple(mechanism.evaluation.rounds)):
        words.append(f"{count} evaluations at the sites are included (evaluation.every)")
    if config.evaluation.parts:
        words.append(_parts(config, mechanism.evaluation.deviation))
    return words


def _parts(config: RunConfig, deviation: Callable[[float], float]) -> str:
    """Say how many held-out units a label or group needs to be told of."""
    from fedllm.tasks import task_of
    from fedllm.tasks.scores import LARGEST_SPREAD, longest

    noise = deviation(longest(task_of(config).site_scores, 1))
    noise *= sqrt(config.rounds.min_sites)
    return (
        f"a {config.evaluation.parts} of which {config.rounds.min_sites} sites together hold out "
        f"fewer than about {noise / LARGEST_SPREAD:,.0f} {config.unit}s is not told of "
        "(evaluation.parts)"
    )
