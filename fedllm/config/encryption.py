"""How a site's update travels."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedllm.config.section import Section


class EncryptionSection(Section):
    """How updates travel.

    Attributes
    ----------
    scheme : {"bfv", "ckks", "none"}
        "bfv" is exact and the default. "none" sends every site's update in clear.
    bits : int
        Quantisation of one parameter (BFV and masks).
    masks : bool, optional
        Pairwise masks under the encryption, so that coordinator and key authority
        together still see only the sum. With BFV they are on unless switched off; the other
        schemes cannot have them. Without them each update must be private by itself, so
        ``privacy.noise = "distributed"`` demands them.
    recover_dropouts : bool
        With masks, finish a round without the sites that failed in it, and with those that went
        away once all had agreed on the sum, at the price of two more short exchanges a round.
        Otherwise such a round is repeated and charged again.
    colluding_share : float
        In cohorts of more than 200 sites, in which each site shares masks with some others alone:
        part of the cohort that may be in league with coordinator and key authority.
    lost_share : float
        In such cohorts, part that may be missing from a sum without costing the attempt.
    """

    scheme: Literal["bfv", "ckks", "none"] = "bfv"
    bits: Annotated[int, Field(ge=4, le=24)] = 16
    masks: bool | None = None
    recover_dropouts: bool = True
    colluding_share: Annotated[float, Field(ge=0, le=0.5)] = 0.2
    lost_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1

    @model_validator(mode="after")
    def _masks_need_modular_arithmetic(self) -> Self:
        if self.masks and self.scheme != "bfv":
            raise ValueError(
                "masks = true needs scheme = 'bfv': CKKS has no exact modular sum, "
                "and scheme 'none' protects nothing"
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether updates are masked under the encryption."""
        return self.scheme == "bfv" and self.masks is not False
