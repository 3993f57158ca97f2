"""Noise that is the sum of the sites' shares, whichever vector it is added to."""

from __future__ import annotations

from collections.abc import Sequence

from fedllm.errors import RefusedError
from fedllm.mechanisms.mechanism import Mechanism
from fedllm.privacy.accounting.events import PoissonGaussian

# Attempts that failed cost noise in those that follow; four times is a run nearly spent.
_MOST_TIMES = 4.0


class SharedShares(Mechanism):
    """Mechanisms whose noise is the sum of the sites' shares; the coordinator announces it."""

    @property
    def needs_masks(self) -> bool:
        """Yes: one update holds one share."""
        return True

    @property
    def colluders(self) -> int | None:
        """As many as the run assumes: the shares of the others are enough."""
        return self._config.privacy.colluders

    def announced_noise(self, number: int, before: Sequence[float]) -> float | None:
        """Return the noise of the next attempt's sum; see the base class."""
        # Public and the same at every site, whatever the number of its records.
        rate = self.sampling_rate(1)
        return self._solve(rate, number, [PoissonGaussian(rate, noise, 1) for noise in before])

    @property
    def _most_noise(self) -> float:
        """More than is needed, since attempts fail; see the base class."""
        return _MOST_TIMES * super()._most_noise

    @property
    def _least_noise(self) -> float:
        """Noise multiplier that the levels are fine enough for."""
        return 0.0

    def agreed_noise(self, needed: float | None, announced: float | None) -> float | None:
        """Take the announced noise if it is enough here and fits; see the base class."""
        # Rounds that this site missed make its own need smaller, never larger.
        if needed is None or announced is None or announced < needed:
            raise RefusedError(
                "the announced noise multiplier does not keep the run's epsilon at this site",
                "the coordinator must announce more noise or fewer rounds",
            )
        if not self._least_noise <= announced <= self._most_noise:
            raise RefusedError(
                f"the announced noise multiplier {announced:.4g} does not fit the run's levels, "
                f"which hold {self._least_noise:.4g} to {self._most_noise:.4g}",
                "if many attempts failed, start a new run; if it is too little, raise "
                "encryption.bits",
            )
        return announced
