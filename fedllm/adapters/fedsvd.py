"""B is trained, and the coordinator turns A after every round (FedSVD, Lee et al. 2025).

The opened sum moves B. Then B A = U S V' is written anew, with A = V' and B = U S: the same
function, whose rows of A are orthogonal directions in the order of what was learned. That is made
of sums that are noised already, so it costs no privacy; and what is sent is B alone.

Whatever B is, the rows of B A lie where those of A lie. So all that a round does to A is to turn
it within the space that it spans from the start (`docs/adapters.md` says what follows).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters.method import Moments, Step, Vector
from fedllm.adapters.parts import PartOfAdapter
from fedllm.models.lora import ORTHONORMAL_SCALE
from fedllm.models.manifest import Segment

Matrix = NDArray[np.float64]


class FedSvd(PartOfAdapter):
    """B and head are trained and sent; A, B and head go down."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """B alone."""
        return ("B",)

    def next(self, adapter: Vector, mean: NDArray[np.floating[Any]], step: Step) -> Vector:
        """Take the coordinator's step of B and head, and make A's rows orthogonal again."""
        moved = super().next(adapter, mean, step)
        for a, b in self._pairs():
            new_a, new_b = turned(_of(moved, a), _of(moved, b))
            moved[a.slice] = new_a.ravel()
            moved[b.slice] = new_b.ravel()
        return moved

    def direction(self, moments: Moments, before: Vector, after: Vector) -> Moments:
        """Return a direction of B and head for the turned A.

        A change D of the old B changes the product by D A; the same is (D T) A' with T = A A'^+.
        So momentum goes on as if A had stood still.
        """
        return self._carried(moments, before, after, lambda turn: turn)

    def squares(self, moments: Moments, before: Vector, after: Vector) -> Moments:
        """Return variances for the turned A: of values that do not depend on each other.

        Noise is such, and what little a round's gradients say is far below it. The rows of the
        squares of a rotation add up to 1, so that the sum of all variances stays.
        """
        return self._carried(moments, before, after, np.square)

    def _carried(self, moments: Moments, before: Vector, after: Vector, of: Any) -> Moments:
        carried, up = moments.copy(), {s.name: s for s in self.up.segments}
        for a, b in self._pairs():
            turn = _of(before, a) @ np.linalg.pinv(_of(after, a))
            place = up[b.name].slice
            carried[place] = (moments[place].reshape(b.shape) @ of(turn)).ravel()
        return carried

    def _pairs(self) -> Iterator[tuple[Segment, Segment]]:
        """Yield A and B of each adapted layer, as they lie in what goes down."""
        named = {segment.name: segment for segment in self.down.segments}
        for name, segment in named.items():
            if segment.kind == "A":
                yield segment, named[name.replace(".lora_A.", ".lora_B.")]


def turned(a: Matrix, b: Matrix) -> tuple[Matrix, Matrix]:
    """Return A (R, N) and B (M, R) of the same product, the rows of A along what B A does.

    They are right singular vectors of the product, `ORTHONORMAL_SCALE` long. Where the product
    has fewer than R, the others complete them within the space of the old rows: to go on learning
    needs all.
    """
    rows, upper = np.linalg.qr(a.T)
    rank = len(upper)
    # All directions are wanted on the right, also where the product has fewer.
    left, sizes, right = np.linalg.svd(b @ upper.T, full_matrices=len(b) < rank)
    signed = right @ rows.T
    signs = np.sign(signed[np.arange(rank), np.abs(signed).argmax(axis=1)])
    scaled = np.zeros((len(b), rank))
    scaled[:, : len(sizes)] = left[:, : len(sizes)] * sizes
    return ORTHONORMAL_SCALE * signs[:, None] * signed, scaled * signs / ORTHONORMAL_SCALE


def _of(vector: Vector, segment: Segment) -> Matrix:
    return vector[segment.slice].reshape(segment.shape).astype(np.float64)
