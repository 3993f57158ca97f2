"""What a site computes in a round: its update, or the scores of its held-out records."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import numpy as np
from numpy.typing import NDArray

from fedllm.data.encode import EncodedDataset
from fedllm.errors import TrainingError
from fedllm.federation.protocol.discrete import make_grid
from fedllm.federation.protocol.evaluating import noised_sum
from fedllm.federation.protocol.terms import local_settings
from fedllm.federation.site.orders import Order
from fedllm.privacy.whole import private_update
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import unit_scores
from fedllm.training.local import (
    LocalResult,
    LocalSettings,
    clipped_gradient_sum,
    train_locally,
)
from fedllm.training.observed import LocalStatistics


class SiteWork:
    """Carries out checked orders; what it returns has its noise and is ready to be encrypted.

    Parameters
    ----------
    name : str
        The site's; makes its random numbers its own where a run can be repeated exactly.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._clipping_norms: dict[str, float] = {}

    def train(
        self, order: Order, dataset: EncodedDataset, noise_multiplier: float | None
    ) -> tuple[NDArray[np.uint64], LocalStatistics]:
        """Train for one round.

        Returns
        -------
        levels : uint64 array (P,)
            The site's update, quantised, noise included.
        statistics : LocalStatistics
            For the site's own log alone.
        """
        order.model.set_adapter(order.adapter)
        settings = local_settings(order.config, dataset.number_of_units, noise_multiplier)
        if noise_multiplier is not None and order.config.discrete_noise:
            return self._with_integer_noise(order, dataset, settings, noise_multiplier)
        if noise_multiplier is not None and order.config.unit == "site":
            update, statistics = self._as_a_whole(order, dataset, settings, noise_multiplier)
        else:
            update, statistics = self._step_by_step(order, dataset, settings)
        return order.quantiser.quantise(update, self._random(order, "rounding")), statistics

    def evaluate(self, order: Order, held_out: EncodedDataset | None) -> NDArray[np.uint64]:
        """Return the noised and quantised sums (B,) of the held-out records' scores, as uint64."""
        order.model.set_adapter(order.adapter)
        scores = unit_scores(order.model, held_out)
        noised = noised_sum(order.config, scores, RandomStream.secure())
        return order.quantiser.quantise(noised, self._random(order, "rounding"))

    def _step_by_step(
        self, order: Order, dataset: EncodedDataset, settings: LocalSettings
    ) -> tuple[NDArray[np.float32], LocalStatistics]:
        """Train; with noise in each step, if the run is private."""
        # After a restart the norm starts anew; what it follows is noised either way.
        norm = self._clipping_norms.get(order.statement.run, settings.clipping_norm)
        result = self._trained(order, dataset, replace(settings, clipping_norm=norm))
        if settings.clipping_quantile is not None:
            self._clipping_norms[order.statement.run] = result.clipping_norm
        return result.update, result.statistics

    def _as_a_whole(
        self,
        order: Order,
        dataset: EncodedDataset,
        settings: LocalSettings,
        noise_multiplier: float,
    ) -> tuple[NDArray[np.float32], LocalStatistics]:
        """Train without noise, then clip and noise the update as one unit.

        Training that fails counts as an update of nothing: a refusal would tell something of
        the site without any noise. The site's log has no loss then.
        """
        try:
            result = self._trained(order, dataset, replace(settings, noise_multiplier=None))
            update, statistics = result.update, result.statistics
        except TrainingError:
            update, statistics = np.zeros_like(order.adapter), LocalStatistics(nan, 0, 0, ())
        update = private_update(
            update,
            order.config.privacy.clipping_norm,
            noise_multiplier,
            settings.noise_share,
            RandomStream.secure(),
        )
        return update, statistics

    def _with_integer_noise(
        self,
        order: Order,
        dataset: EncodedDataset,
        settings: LocalSettings,
        noise_multiplier: float,
    ) -> tuple[NDArray[np.uint64], LocalStatistics]:
        """Sum clipped gradients, round the sum, then add the site's integer share of the noise."""
        sampling = self._random(order, "sampling")
        total, statistics = clipped_gradient_sum(order.model, dataset, settings, sampling)
        grid = make_grid(order.config, order.model.manifest.length)
        norm, secure = order.config.privacy.clipping_norm, RandomStream.secure()
        return grid.noised_levels(total, norm, noise_multiplier, secure), statistics

    def _trained(
        self, order: Order, dataset: EncodedDataset, settings: LocalSettings
    ) -> LocalResult:
        sampling = self._random(order, "sampling")
        return train_locally(
            order.model, dataset, settings, sampling=sampling, noise=RandomStream.secure()
        )

    def _random(self, order: Order, purpose: str) -> RandomStream:
        # A run without privacy promises nothing, and can be repeated exactly instead.
        if order.config.private:
            return RandomStream.secure()
        return RandomStream.seeded(order.config.seed, purpose, self._name, order.statement.round)
