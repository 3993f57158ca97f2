"""What a site computes in a round: its update, or the scores of its held-out records."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import AdapterMethod
from fedllm.adapters.ranks import trained_places
from fedllm.config import DataSection, RunConfig
from fedllm.data.encode import EncodedDataset
from fedllm.federation.protocol.evaluating import noised_sum, parts_of
from fedllm.federation.site.orders import Order
from fedllm.federation.site.policy import protected_unit
from fedllm.mechanisms import LocalResult, LocalSettings, LocalStatistics, SiteRound, mechanism_of
from fedllm.models.shared import SharedModel
from fedllm.randomness import RandomStream
from fedllm.training.evaluate import scores_of_units
from fedllm.training.local import clipped_gradient_sum, train_locally
from fedllm.training.made_up import MadeUpTraining


class SiteWork:
    """Carries out checked orders; what it returns has its noise and is ready to be encrypted.

    Parameters
    ----------
    name : str
        The site's; makes its random numbers its own where a run can be repeated exactly.
    data : DataSection, optional
        The site's own source, which says whose records belong together; else the run's does.
    made_up : MadeUpTraining, optional
        What other sites of the same process try adapters with too.
    """

    def __init__(
        self, name: str, data: DataSection | None = None, made_up: MadeUpTraining | None = None
    ) -> None:
        self._name = name
        self._data = data
        # After a restart a norm that moves starts anew; what it follows is noised either way.
        self._clipping_norms: dict[str, float] = {}
        self._made_up = made_up or MadeUpTraining()

    def require_trainable(
        self,
        config: RunConfig,
        model: SharedModel,
        method: AdapterMethod,
        adapter: NDArray[np.float32],
    ) -> None:
        """Refuse an adapter from which no training could work; looks at no record.

        Raises
        ------
        TrainingError
            See `MadeUpTraining.require`.
        """
        with model.unchanged():
            method.place(adapter)
            self._made_up.require(
                model,
                config.model.max_length,
                activation_checkpointing=config.training.activation_checkpointing,
                sampled_words=config.training.sampled_words,
                rows_at_once=_rows_at_once(config, self._data),
            )

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
        order.method.place(order.adapter)
        run = order.statement.run
        asked = SiteRound(
            TrainingAtSite(order.model, order.method, dataset, _trained_here(order)),
            order.units,
            noise_multiplier,
            order.quantiser.quantise,
            order.quantiser.quantise_parts,
            (self._name, order.statement.round, order.statement.attempt),
            self._clipping_norms.get(run),
        )
        contribution = mechanism_of(order.config).contribute(asked)
        self._clipping_norms[run] = contribution.clipping_norm
        return contribution.levels, contribution.statistics

    def evaluate(self, order: Order, held_out: EncodedDataset | None) -> NDArray[np.uint64]:
        """Return the noised and quantised sums (B,) of the held-out records' scores, as uint64."""
        order.method.place(order.adapter)
        labels = order.model.labels
        parts = None if held_out is None else parts_of(order.config, labels, held_out)
        scores = scores_of_units(order.model, held_out, parts)
        noised = noised_sum(order.config, labels, scores, RandomStream.secure())
        which = (self._name, order.statement.round, order.statement.attempt)
        rounding = mechanism_of(order.config).random("rounding", *which)
        return order.quantiser.quantise(noised, rounding)


def _rows_at_once(config: RunConfig, data: DataSection | None) -> int:
    """Return how many records of one unit a private step computes at once, at most.

    Also where no unit of the site has so many: how many they have is private, and a refusal
    would tell.
    """
    if not config.private:
        return 0
    alone = config.unit != "site" and protected_unit(config, data) == "record"
    return 1 if alone else config.training.microbatch_size


def _trained_here(order: Order) -> NDArray[np.bool_] | None:
    """Return what of the adapter this site trains, by the size that it signed; None for all."""
    lora = order.config.lora
    if not lora.ranks:
        return None
    return trained_places(order.method.trained, lora.rank_of(order.units))


@dataclass(frozen=True)
class TrainingAtSite:
    """A model and a site's records, for a mechanism to train on; see `LocalWork`.

    Where ``trained`` (P,) is given, these values move alone.
    """

    model: SharedModel
    method: AdapterMethod
    dataset: EncodedDataset
    trained: NDArray[np.bool_] | None = None

    @property
    def units(self) -> int:
        """Records or persons at the site."""
        return self.dataset.number_of_units

    @property
    def length(self) -> int:
        """Values of an update."""
        return self.method.up.length

    def train(
        self, settings: LocalSettings, sampling: RandomStream, noise: RandomStream
    ) -> LocalResult:
        """Take the steps; see `train_locally`."""
        result = train_locally(
            self.model,
            self.dataset,
            settings,
            sampling=sampling,
            noise=noise,
            trained=self.trained,
        )
        return replace(result, update=self.method.upward(result.update))

    def gradient_sum(
        self, settings: LocalSettings, sampling: RandomStream
    ) -> tuple[NDArray[np.float64], LocalStatistics]:
        """Sum one batch's clipped gradients; see `clipped_gradient_sum`."""
        total, seen = clipped_gradient_sum(self.model, self.dataset, settings, sampling)
        return self.method.upward(total), seen
