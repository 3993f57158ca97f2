"""What is trained travels both ways, as it is.

LoRA (Hu et al. 2021): A and B of each adapted layer, and a classification's head. FFA-LoRA (Sun
et al. 2024): A stays at its random start, which all parties derive from the run's seed, so B and
the head alone are trained; its rows may be orthogonal, which every party computes to the same
bits. Head only: no layer is adapted. They differ in which tensors the model trains
(`fedllm.models.lora`), and in nothing here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters.method import AdapterMethod, Floats, Step, Vector
from fedllm.models.manifest import AdapterManifest


class PlainAdapter(AdapterMethod):
    """One space for all of them."""

    @property
    def down(self) -> AdapterManifest:
        """The trained tensors."""
        return self.trained

    @property
    def up(self) -> AdapterManifest:
        """The trained tensors."""
        return self.trained

    def start(self) -> Vector:
        """Return the untrained adapter."""
        return self._model.initial

    def place(self, adapter: Vector) -> None:
        """Put an adapter into the model; see the base class."""
        self._model.set_adapter(adapter)

    def upward(self, change: NDArray[Floats]) -> NDArray[Floats]:
        """Return the change as it is."""
        return change

    def next(self, adapter: Vector, mean: NDArray[np.floating[Any]], step: Step) -> Vector:
        """Take the coordinator's step."""
        return step(adapter, mean)
