"""Which protections a run does without, in words for whoever starts it."""

from __future__ import annotations

from collections.abc import Iterable

from fedllm.config import RunConfig, SitePolicy
from fedllm.errors import RefusedError
from fedllm.privacy.accounting.words import epsilon_text

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


def against_all_others(config: RunConfig, policy: SitePolicy | None = None) -> list[str]:
    """Say what all others together could learn of a unit, where no ceiling is known to limit it.

    Parameters
    ----------
    config : RunConfig
        The run. With shared noise, sampling rate and noise are public, and the same at all sites.
    policy : SitePolicy, optional
        That of all sites, in a simulation; a coordinator does not know the sites'.
    """
    # Imports torch, before which other things are refused.
    from fedllm.mechanisms import mechanism_of, planned_cost

    mechanism = mechanism_of(config)
    if mechanism.colluders is None or (policy and policy.budget.colluders_epsilon is not None):
        return []
    try:
        cost = planned_cost(config, config.training.batch_size)
    except RefusedError:
        # The sites say so themselves.
        return []
    if cost.colluders_epsilon is None:
        return []
    limit = "no ceiling of these sites limits that" if policy else "unless a site limits that"
    return [
        f"the noise is shared: against those who see sums a {config.unit} has epsilon "
        f"{epsilon_text(cost.epsilon)}, against everyone else together, other sites included, "
        f"epsilon {epsilon_text(cost.colluders_epsilon)}; {limit} (budget.colluders_epsilon in "
        "site.toml)"
    ]


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
    if config.rounds.optimizer in ("adam", "muon"):
        # Its steps are as long whatever sums are divided by.
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
