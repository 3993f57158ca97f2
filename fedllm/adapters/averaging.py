"""What is lost when A and B of an adapter are averaged apart instead of their products.

The mean of the sites' products is not the product of their means. With A = A0 + a and B = B0 + b
at each site, ``mean(B A) - mean(B) mean(A) = mean(b a) - mean(b) mean(a)``: nothing at the first
order of a step, and more with every local step (Sun et al. 2024). It can be known only where each
site's part is seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.models.manifest import AdapterManifest, Segment
from fedllm.models.shared import SharedModel

# Of all layers' products together, float64.
_MOST_BYTES = 2**29
_Halves = tuple[Segment, Segment]


class AveragingLoss:
    """Hears each site's update of a round, and tells what their mean lost.

    Parameters
    ----------
    manifest : AdapterManifest
        Of A, B and perhaps a head.
    adapter : float32 array (P,)
        Where the round started.
    """

    def __init__(self, manifest: AdapterManifest, adapter: NDArray[np.float32]) -> None:
        named = {segment.name: segment for segment in manifest.segments}
        self._layers: list[_Halves] = [
            (a, named[name.replace(".lora_A.", ".lora_B.")])
            for name, a in named.items()
            if a.kind == "A"
        ]
        self._start = adapter.astype(np.float64)
        self._sum = np.zeros(manifest.length)
        self._products = [np.zeros((b.shape[0], a.shape[1])) for a, b in self._layers]
        self._count = 0

    @classmethod
    def of(cls, model: SharedModel, adapter: NDArray[np.float32]) -> AveragingLoss | None:
        """Return one for a round; None where the products would need too much memory."""
        found = cls(model.manifest, adapter)
        return found if sum(p.nbytes for p in found._products) <= _MOST_BYTES else None

    def add(self, update: NDArray[np.floating[Any]]) -> None:
        """Take one site's update (P,)."""
        moved = update.astype(np.float64)
        self._sum += moved
        self._count += 1
        for (a, b), products in zip(self._layers, self._products, strict=True):
            np.add(products, _matrix(moved, b) @ _matrix(moved, a), out=products)

    def share(self) -> float | None:
        """Return the norm of what was lost over that of the mean change, over all layers.

        None where nothing changed.
        """
        if not self._count:
            return None
        mean, lost, changed = self._sum / self._count, 0.0, 0.0
        for (a, b), products in zip(self._layers, self._products, strict=True):
            down, up = _matrix(mean, a), _matrix(mean, b)
            of_products = products / self._count
            lost += float(np.square(of_products - up @ down).sum())
            before = _matrix(self._start, a), _matrix(self._start, b)
            change = of_products + before[1] @ down + up @ before[0]
            changed += float(np.square(change).sum())
        return float(np.sqrt(lost / changed)) if changed else None


def _matrix(vector: NDArray[np.float64], segment: Segment) -> NDArray[np.float64]:
    return vector[segment.slice].reshape(segment.shape)
