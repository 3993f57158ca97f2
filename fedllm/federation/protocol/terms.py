"""What all rounds of a run share: what sites hear of it, and how large their updates can get."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fedllm.adapters import adapter_of, sent_in_turn
from fedllm.config import RunConfig, to_toml
from fedllm.federation.protocol.evaluating import Bounds, sum_shape
from fedllm.mechanisms import mechanism_of
from fedllm.models.manifest import AdapterManifest
from fedllm.models.shared import SharedModel


@dataclass(frozen=True)
class Terms:
    """What stays the same in all rounds of a run.

    Attributes
    ----------
    run : str
        Random identifier of the run.
    config : RunConfig
        What the coordinator asks for; sent without the places of its own data.
    labels : tuple of str
        Public labels of a classification task.
    model : str
        Fingerprint of the base model.
    adapter_length : int
        Values of the adapter that goes down.
    bounds : tuple of (int, float)
        For each segment of what comes up its length and the bound of one coordinate; in the first
        round, where not all are alike.
    later : tuple of tuple of (int, float)
        The same in the rounds after it, until they begin again with the first.
    """

    run: str
    config: RunConfig
    labels: tuple[str, ...]
    model: str
    adapter_length: int
    bounds: Bounds
    later: tuple[Bounds, ...] = ()

    @cached_property
    def config_text(self) -> str:
        """The run configuration as the sites get it, as TOML."""
        return to_toml(self.config)

    @property
    def update_length(self) -> int:
        """Values of what comes up from a site."""
        return sum(size for size, _ in self.bounds)

    def bounds_of(self, number: int) -> Bounds:
        """Return the bounds of what comes up in round ``number``."""
        turns = (self.bounds, *self.later)
        return turns[(number - 1) % len(turns)]


def make_terms(config: RunConfig, model: SharedModel, run: str) -> Terms:
    """Return what stays the same in all rounds, for the sites to hear.

    Raises
    ------
    ConfigError
        If the run's noise does not fit its levels.
    BudgetError
        If no noise keeps the run's epsilon.
    """
    shared, method = shared_config(config), adapter_of(model)
    turns = [_bounds(shared, up) for up in sent_in_turn(model)]
    if mechanism_of(shared).evaluation.rounds:
        # Now, and not after the first rounds.
        sum_shape(shared, "evaluation", (), model.labels)
    return Terms(
        run=run,
        config=shared,
        labels=model.labels,
        model=model.fingerprint,
        adapter_length=method.down.length,
        bounds=turns[0],
        later=tuple(turns[1:]),
    )


def _bounds(config: RunConfig, up: AdapterManifest) -> Bounds:
    sizes = [segment.size for segment in up.segments]
    return tuple(zip(sizes, mechanism_of(config).bounds(up.segments), strict=True))


def shared_config(config: RunConfig) -> RunConfig:
    """Return a run's configuration as the sites get it: without the coordinator's own places.

    Nor its GPU: where a site computes is the site's own.
    """
    data = config.data.model_copy(
        update={
            "train": "the site's own",
            "test": None,
            "query": None,
            "site": None,
            "sites": max(config.data.sites, config.rounds.min_sites),
        }
    )
    # Sites are sent the adapter that it names, and need to know that they are.
    start = "the coordinator's own" if config.refers_to_start else None
    model = config.model.model_copy(update={"path": "the site's own", "start": start})
    lora = config.lora.model_copy(update={"public_texts": None})
    engine = config.engine.model_copy(update={"device": None})
    return config.model_copy(update={"data": data, "model": model, "lora": lora, "engine": engine})
