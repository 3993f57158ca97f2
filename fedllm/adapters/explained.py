"""B is trained on directions of a layer's inputs (EVA, Paischer et al. 2024).

A is made of public texts by the coordinator (`fedllm.models.explained`), before the first round,
and goes down with every order: the statement's digest of the adapter covers it, and sites need
neither the texts nor a decomposition of their own.
"""

from __future__ import annotations

from fedllm.adapters.parts import PartOfAdapter


class ExplainedAdapter(PartOfAdapter):
    """B and head are trained and sent; A, B and head go down."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """B alone."""
        return ("B",)
