"""A small matrix in a fixed basis (LoRA-XS, Balazy et al. 2024; Fed-SB, Singhal et al. 2025).

The basis, B and A, is made of the base's own weights (`fedllm.models.core`) and never of
gradients, which would be a release of its own. A decomposition differs from processor to processor
in its last bits, and wherever singular values are equal altogether, so sites do not use one of
their own: the coordinator's goes down with every order, and the statement's digest of the adapter
covers it.
"""

from __future__ import annotations

from fedllm.adapters.parts import PartOfAdapter


class CoreAdapter(PartOfAdapter):
    """R and head are trained and sent; A, B, R and head go down."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The core alone."""
        return ("R",)
