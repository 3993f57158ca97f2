"""Quantities of a record's loss that are nearly normal over models, for membership inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def logit_of_likelihood(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logit of the probability that a cross-entropy (N,) in nats is of, (N,).

    The choice of LiRA (Carlini et al. 2022, "Membership inference attacks from first
    principles") for classifiers.
    """
    import numpy as np

    right = np.exp(-np.clip(losses, 1e-7, 50.0))
    return np.log(right) - np.log1p(-right)
