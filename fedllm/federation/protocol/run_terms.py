"""What all rounds of a run share: what sites hear of it, and how large their updates can get."""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.config import RunConfig, to_toml
from fedllm.federation.protocol.discrete import make_grid
from fedllm.federation.protocol.evaluating import Bounds, planned_events
from fedllm.federation.protocol.terms import public_settings, shared_config
from fedllm.models.manifest import AdapterManifest
from fedllm.models.shared import SharedModel
from fedllm.privacy.whole import site_deviation
from fedllm.training.bounds import update_bounds, whole_update_bounds


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
    length : int
        Values of the adapter, P.
    bounds : tuple of (int, float)
        For each segment of the adapter its length and the bound of one coordinate.
    """

    run: str
    config: RunConfig
    labels: tuple[str, ...]
    model: str
    length: int
    bounds: Bounds

    @property
    def config_text(self) -> str:
        """The run configuration as the sites get it, as TOML."""
        return to_toml(self.config)


def make_terms(config: RunConfig, model: SharedModel, run: str) -> Terms:
    """Return what stays the same in all rounds, for the sites to hear.

    Raises
    ------
    ConfigError
        If the run asks for discrete noise on too coarse a grid.
    BudgetError
        If no noise keeps the run's epsilon.
    """
    bounds = _bounds(config, model.manifest)
    sizes = [segment.size for segment in model.manifest.segments]
    return Terms(
        run=run,
        config=shared_config(config),
        labels=model.labels,
        model=model.fingerprint,
        length=model.manifest.length,
        bounds=tuple(zip(sizes, bounds, strict=True)),
    )


def _bounds(config: RunConfig, manifest: AdapterManifest) -> tuple[float, ...]:
    if config.discrete_noise:
        grid = make_grid(shared_config(config), manifest.length)
        return (grid.bound,) * len(manifest.segments)
    settings = public_settings(config, planned_events(config))
    if config.unit == "site" and settings.noise_multiplier is not None:
        norm = config.privacy.clipping_norm
        deviation = site_deviation(settings.noise_multiplier, norm, settings.noise_share)
        return whole_update_bounds(norm, deviation, manifest)
    return update_bounds(settings, manifest)
