"""What a round asks of a site in numbers: batches, steps, noise; and whether a policy allows it."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

from fedllm.config import AllowSection, RunConfig
from fedllm.errors import RefusedError
from fedllm.privacy.accounting.calibration import solve_noise_multiplier
from fedllm.privacy.accounting.events import Event
from fedllm.training.local import LocalSettings


def check_allowed(config: RunConfig, allow: AllowSection, model_fingerprint: str) -> None:
    """Refuse a run that the site's policy does not allow.

    Raises
    ------
    RefusedError
        Names the policy's key. Says nothing about the data.
    """
    refuse(config.task not in allow.tasks, f"task {config.task!r} is not in allow.tasks")
    if allow.models and model_fingerprint not in allow.models:
        raise RefusedError(
            "the base model's fingerprint is not in allow.models",
            "fedllm client check prints the fingerprint of the site's own copy; those that earlier "
            "versions printed did not cover all files and are no longer accepted",
        )
    refuse(
        allow.encryption == "required" and config.encryption.scheme == "none",
        "the run does not encrypt updates, and allow.encryption is 'required'",
    )
    refuse(
        not config.private and not allow.non_private,
        "the run has no differential privacy, and allow.non_private is false",
    )
    refuse(
        allow.unit == "person" and config.unit == "record",
        "the run protects single records, and allow.unit is 'person'",
    )
    refuse(
        config.rounds.min_sites < allow.min_cohort,
        f"sums of {config.rounds.min_sites} sites may be opened, and allow.min_cohort is "
        f"{allow.min_cohort}",
    )


def refuse(condition: bool, reason: str) -> None:
    """Raise a `RefusedError` with ``reason`` if ``condition`` holds."""
    if condition:
        raise RefusedError(reason, "the site's owner can change its policy; the run cannot")


def sampling_rate(config: RunConfig, units: int) -> float:
    """Return the probability of one record or person to be in a batch."""
    if config.training.sampling_rate is not None:
        return config.training.sampling_rate
    return min(1.0, config.training.batch_size / units)


def charged_rate(config: RunConfig, units: int) -> float:
    """Return the probability of one unit of privacy to be in a step; sites are in every round."""
    return 1.0 if config.unit == "site" else sampling_rate(config, units)


def charged_steps(config: RunConfig) -> int:
    """Return how many noised sums one round releases of a unit."""
    return 1 if config.unit == "site" else config.training.local_steps


def noise_share(config: RunConfig) -> float:
    """Return the part of the noise's standard deviation that one site adds.

    With distributed noise the shares of the smallest sum that may be opened, less those of
    the assumed colluders, must make up the whole: n shares of 1/sqrt(n) do.
    """
    return 1.0 / sqrt(noise_shares(config))


def noise_shares(config: RunConfig) -> int:
    """Return how many sites' shares make up the whole noise; 1 with local noise."""
    if config.privacy.noise == "local":
        return 1
    return config.rounds.min_sites - config.privacy.colluders


def local_settings(config: RunConfig, units: int, noise_multiplier: float | None) -> LocalSettings:
    """Return what one site does in one round.

    Parameters
    ----------
    config : RunConfig
        What the coordinator asks for.
    units : int
        Records or persons at the site.
    noise_multiplier : float, optional
        Of one step; none for a run without privacy.
    """
    training = config.training
    rate = sampling_rate(config, units)
    # With distributed noise the divisor must not depend on private sizes: the coordinator
    # learns the sum, and all sites divide by the same public number.
    distributed = config.privacy.noise == "distributed" and config.unit != "site"
    return LocalSettings(
        steps=training.local_steps,
        sampling_rate=rate,
        expected_batch_size=float(training.batch_size) if distributed else rate * units,
        microbatch_size=training.microbatch_size,
        optimizer=training.optimizer,
        learning_rate=training.learning_rate,
        head_learning_rate=training.head_learning_rate or training.learning_rate,
        clipping_norm=config.privacy.clipping_norm,
        noise_multiplier=noise_multiplier,
        noise_share=noise_share(config),
        clipping_quantile=config.privacy.clipping_quantile if noise_multiplier else None,
    )


def public_settings(config: RunConfig, beside: tuple[Event, ...] = ()) -> LocalSettings:
    """Return what a round looks like from public numbers alone, to bound updates with.

    A site's own sampling rate and noise are private. ``training.batch_size`` stands for its
    batch, and the noise is that of a site which uses all its records in each step: more than
    any real site's. ``beside`` is what the run spends on anything but training.
    """
    noise = None
    if config.privacy.epsilon is not None:
        steps = config.rounds.count * charged_steps(config)
        noise = solve_noise_multiplier(
            config.privacy.epsilon, config.privacy.delta, 1.0, steps, beside
        )
    settings = local_settings(config, config.training.batch_size, noise)
    return replace(settings, expected_batch_size=float(config.training.batch_size))


def shared_config(config: RunConfig) -> RunConfig:
    """Return a run's configuration as the sites get it: without the coordinator's own places."""
    data = config.data.model_copy(
        update={
            "train": "the site's own",
            "test": None,
            "query": None,
            "site": None,
            "sites": max(config.data.sites, config.rounds.min_sites),
        }
    )
    model = config.model.model_copy(update={"path": "the site's own"})
    return config.model_copy(update={"data": data, "model": model})
