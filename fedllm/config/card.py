"""What only the coordinator can say of a run's model: words for its card."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedllm.config.section import Section

_Words = Annotated[str, Field(min_length=1, max_length=4000)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_PARTS = 2


class CardSection(Section):
    """What the model card says that no file of the run knows; see docs/export.md.

    Attributes
    ----------
    data : str, optional
        What the training records are: where they come from, of whom, in which languages.
    intended_use : str, optional
        What the model is for, and what not.
    licence : str, optional
        Of the adapter, best as an SPDX identifier such as "Apache-2.0".
    base_model : str, optional
        Repository of the base model on a hub, such as "ORG/NAME", for those who have to find it.
        Written down alone: nothing is fetched.
    """

    data: _Words | None = None
    intended_use: _Words | None = None
    licence: _Name | None = None
    base_model: _Name | None = None

    @model_validator(mode="after")
    def _a_repository_has_an_owner(self) -> Self:
        parts = (self.base_model or "owner/name").split("/")
        plain = all(
            p and p.replace("-", "").replace(".", "").replace("_", "").isalnum() for p in parts
        )
        if len(parts) != _PARTS or not plain or not all(p.isascii() and p[0] != "." for p in parts):
            raise ValueError(
                f"card.base_model = {self.base_model!r} is no repository: write it as 'ORG/NAME'"
            )
        return self
