"""A and B are trained in turn (RoLoRA, Chen et al. 2024): B in odd rounds, A in even ones.

What is sent moves one factor of the product while the other stands still, so the mean of the
sites' products is the product of their mean, as with FFA; but A learns, too. Which half it is
follows from the number of the round, which is signed; clipping and noise count what is trained
then.
"""

from __future__ import annotations

from fedllm.adapters.parts import PartOfAdapter

TURNS = 2


class AlternatingAdapter(PartOfAdapter):
    """A or B and the head are trained and sent; A, B and head go down."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """B in odd rounds, in which alone it can leave zero, where A would learn nothing."""
        return ("B",) if self._number % TURNS else ("A",)
