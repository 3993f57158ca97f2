"""``fedllm privacy plan --quality``: how good a run will be, and which settings are best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedllm.config import RunConfig, parse
from fedllm.config.recipes import coordinator_step
from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from fedllm.mechanisms.quality import Law

ROUNDS = (25, 50, 100, 200)
_RECOMMENDED = (
    "lora.rank",
    "model.head_start",
    "model.feature_center",
    "training.local_steps",
    "training.optimizer",
    "training.sampling_rate",
    "training.batch_size",
    "rounds.count",
    "rounds.min_sites",
    "rounds.optimizer",
    "rounds.learning_rate",
    "privacy.noise",
    "privacy.clipping_norm",
)


@dataclass(frozen=True)
class Quality:
    """What a run of one size will keep of the gain that training without privacy brings.

    Attributes
    ----------
    records, rounds, sites : int
        Records at each site; rounds; sites.
    noise : float
        Of the whole run over its signal; see `fedllm.mechanisms.quality.noise_of`.
    kept, low, high : float
        Share of the gain, and the interval of about 19 in 20 runs.
    accuracy, accuracy_low, accuracy_high : float
        What that would be on the data set that the law was fitted on.
    """

    records: int
    rounds: int
    sites: int
    noise: float
    kept: float
    low: float
    high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


def recipe(epsilon: float, delta: float, rounds: int, sites: int) -> RunConfig:
    """Return a classification run that says nothing else; the rest are the defaults."""
    values: dict[str, Any] = {
        "name": "recipe",
        "task": _law().task,
        "model": {"path": "any"},
        "data": {"train": "any", "sites": sites},
        "rounds": {"count": rounds},
        "privacy": {"epsilon": epsilon, "delta": delta},
    }
    return parse(RunConfig, values, "--quality")


def require_law(config: RunConfig) -> None:
    """Refuse a run that no law was fitted on.

    Raises
    ------
    ConfigError
        For other tasks than classification, runs without privacy or whole sites as units.
    """
    remedy = "leave out --quality; docs/recipes.md has what was measured of other tasks"
    if config.task != _law().task:
        raise ConfigError(
            f"--quality: the law was fitted on runs of {_law().task!r}, and not of {config.task!r}",
            remedy,
        )
    if not config.private or config.unit == "site":
        raise ConfigError("--quality: there is no noise on records to reckon with", remedy)


def predicted(config: RunConfig, noise: float, rate: float, records: int) -> Quality:
    """Return what the law says of a run at sites of one size.

    Parameters
    ----------
    config : RunConfig
        The run.
    noise, rate : float
        Noise multiplier and sampling rate of each step.
    records : int
        At each site.
    """
    from fedllm.mechanisms.quality import fitted_law, noise_of

    sites = config.rounds.min_sites if config.data.site is not None else config.data.sites
    sites = min(sites, config.rounds.sites or sites)
    over = noise_of(config, noise, rate, records, sites)
    law = fitted_law()
    kept = law.kept(over)
    metrics = [law.metric(share, float(records * sites)) for share in kept]
    return Quality(records, config.rounds.count, sites, over, *kept, *metrics)


def settings(config: RunConfig, records: int) -> dict[str, Any]:
    """Return the recommended keys of a run, by name; its step is for so many records a site."""
    said, rate = config.model_dump(mode="json"), config.training.sampling_rate or 1.0
    together = float(records * config.data.sites)
    step = coordinator_step(config.rounds.count, config.privacy.epsilon, together)
    by_size = {"training.batch_size": max(1, round(rate * records)), "rounds.learning_rate": step}
    found = {}
    for name in _RECOMMENDED:
        section, key = name.split(".")
        found[name] = by_size.get(name, said[section][key])
    return found


def reckoned(epsilon: float, delta: float, sites: int, records: int) -> dict[int, Quality]:
    """Return what the law says of runs of the defaults, by their number of rounds.

    Parameters
    ----------
    epsilon, delta : float
        Promised to each unit.
    sites, records : int
        How many sites, and records (or persons) at each.
    """
    from fedllm.mechanisms import mechanism_of

    found = {}
    for rounds in ROUNDS:
        config = recipe(epsilon, delta, rounds, sites)
        mechanism = mechanism_of(config)
        noise = mechanism.needed_noise(records, 1, ()) or 0.0
        found[rounds] = predicted(config, noise, mechanism.sampling_rate(records), records)
    return found


def told(qualities: Sequence[Quality]) -> list[dict[str, Any]]:
    """Return predictions as plain values, for ``--json``."""
    law = _law()
    what = {"runs": law.runs, "source": law.source, "error": law.error}
    return [{"quality": asdict(quality) | {"law": what}} for quality in qualities]


def show(qualities: Sequence[Quality], best: dict[str, Any] | None) -> None:
    """Print predictions, what they are, and the recommended settings."""
    from rich.console import Console
    from rich.table import Table

    law = _law()
    table = Table("records", "sites", "rounds", "kept of the gain", "19 in 20 runs", "as accuracy")
    for one in qualities:
        table.add_row(
            str(one.records),
            str(one.sites),
            str(one.rounds),
            f"{one.kept:.0%}",
            f"{one.low:.0%} to {one.high:.0%}",
            f"{one.accuracy:.2f} ({one.accuracy_low:.2f} to {one.accuracy_high:.2f})",
        )
    console = Console()
    console.print(table)
    print(
        "kept of the gain: of what training without privacy on as many records gains over the "
        f"untrained head. A guide and no promise, fitted on {law.runs} runs of one public data set "
        f"({law.source}). The accuracy is what the share means on that data set, of 77 intents; "
        "your records differ from them"
    )
    if best is not None:
        print("recommended for the largest of these sites:")
        for key, value in best.items():
            print(f"  {key} = {value}")
        print(
            "these train the head alone (lora.rank = 0); docs/recipes.md says when an adapter pays"
        )


def _law() -> Law:
    from fedllm.mechanisms.quality import fitted_law

    return fitted_law()
