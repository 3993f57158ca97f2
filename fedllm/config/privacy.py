"""The differential privacy that a run promises."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from fedllm.config.section import PositiveFloat, Section


def _none(value: Any) -> Any:
    # TOML has no null, and --set needs a word for "not private".
    return None if value == "none" else value


def _not_a_person(value: Any) -> Any:
    if value == "person":
        raise ValueError(
            "must be 'record' or 'site'; to protect persons, name their column in data.unit and "
            "leave this at 'record'"
        )
    return value


class PrivacySection(Section):
    """The differential privacy that the run promises to every record or person.

    Attributes
    ----------
    epsilon : float, optional
        Spent by the whole run at each site; left out or "none", the run is not private.
    delta : float
        Probability mass outside the epsilon bound, at most 0.01. It should be below one over
        the number of records: giving one of n records away at random has a delta of 1 / n.
    unit : {"record", "site"}
        What one unit is: "record", or each person's records together where ``data.unit`` names
        persons; or "site": all that a site contributes to a round. The update as a whole is
        then clipped, local steps are ordinary ones, and the promise holds for a site's
        records being exchanged for any others. It takes far more noise.
    noise : {"local", "distributed"}
        "local": each site's update is private by itself. "distributed": the sum is.
    distribution : {"gaussian", "discrete_gaussian"}
        Shares of continuous noise, rounded before encryption; or integer shares, added after
        rounding, whose sum is exactly the noise that is accounted. The second needs
        distributed noise, BFV and about 20 bits.
    clipping_norm : float
        L2 bound on the gradient of one record, or of one person's records together; with unit
        "site" on a site's update.
    clipping_quantile : float, optional
        Where set, each site's clipping norm starts at ``clipping_norm`` and follows the
        gradients, so that this part of them is within it. The noise is 2% larger for it.
        Needs local noise and ``training.optimizer = "adam"``.
    colluders : int
        Sites assumed to reveal their noise shares (distributed noise).
    """

    epsilon: Annotated[
        PositiveFloat | None,
        BeforeValidator(_none, json_schema_input_type=PositiveFloat | Literal["none"] | None),
    ] = None
    delta: Annotated[float, Field(gt=0, le=1e-2)] = 1e-5
    unit: Annotated[Literal["record", "site"], BeforeValidator(_not_a_person)] = "record"
    noise: Literal["local", "distributed"] = "local"
    distribution: Literal["gaussian", "discrete_gaussian"] = "gaussian"
    # Far from what float64 rounds away.
    clipping_norm: Annotated[float, Field(ge=1e-12, le=1e12)] = 1.0
    clipping_quantile: Annotated[float, Field(gt=0, lt=1)] | None = None
    colluders: Annotated[int, Field(ge=0)] = 0
