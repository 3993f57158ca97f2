"""Which protections a run does without, in words for whoever starts it."""

from __future__ import annotations

from collections.abc import Iterable

from fedllm.config import RunConfig

# A batch that is larger by as much is refused by the site.
_FAR = 4


def given_up(config: RunConfig) -> list[str]:
    """Say which protections a run does without."""
    warnings = []
    if not config.private:
        warnings.append("no differential privacy: the shared model may repeat private records")
    if config.encryption.scheme == "none":
        warnings.append("no encryption: the coordinator sees every site's update in clear")
    elif not config.encryption.masked:
        warnings.append(
            "no masks: a coordinator that breaks the protocol, with the key authority or without "
            "it, can read every site's update"
        )
    return warnings


def odd_batch(config: RunConfig, units: Iterable[int]) -> list[str]:
    """Say when ``training.batch_size`` is far above what any site's batch can be.

    Parameters
    ----------
    config : RunConfig
        With a public sampling rate; without one, a site's batch follows from its size.
    units : iterable of int
        For each site, how many records or persons it has; known in a simulation only.
    """
    training, most = config.training, max(units, default=0)
    if training.sampling_rate is None or config.unit == "site" or not most:
        return []
    expected = training.sampling_rate * most
    if training.batch_size <= _FAR * max(expected, 1.0):
        return []
    return [
        f"training.batch_size = {training.batch_size}, but the largest site has {most} "
        f"{config.unit}s and at training.sampling_rate = {training.sampling_rate:g} draws "
        f"{expected:.0f} of them: steps are {training.batch_size / max(expected, 1.0):.0f} times "
        f"smaller than they should be; set training.batch_size near {max(1, round(expected))}"
    ]


def weak_delta(config: RunConfig, units: Iterable[int]) -> list[str]:
    """Say when delta is so large that it promises little.

    Parameters
    ----------
    config : RunConfig
        With its delta.
    units : iterable of int
        For each site, how many records or persons (or, one number, how many sites) there are
        of the run's unit; known in a simulation only.
    """
    most = max(units, default=0)
    if not config.private or config.privacy.delta * most < 1:
        return []
    return [
        f"delta {config.privacy.delta:g} is not below 1/{most}, one over the largest number of "
        f"{config.unit}s: giving one of them away at random would satisfy it; set a smaller "
        "privacy.delta"
    ]
