"""Which protections a run does without, in words for whoever starts it."""

from __future__ import annotations

from collections.abc import Iterable

from fedllm.config import RunConfig


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
