"""The shared model of a run, and the adapters that are trained on it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedllm.config.section import PositiveFloat, PositiveInt, Section


class ModelSection(Section):
    """The shared Transformer that was pretrained centrally.

    Attributes
    ----------
    path : str
        Folder of a Hugging Face checkpoint; ``package:NAME/FOLDER`` for one that an installed
        Python package carries; or a pretraining configuration (``.toml``), whose model is
        made first if it is not there.
    max_length : int
        Tokens kept of one record.
    pooling : {"mean", "cls"}
        How an encoder's token states become one vector (classification).
    feature_scale : float
        Length of the normalised vector that the head sees (pooled, or of each token), at most
        1000; 0 leaves it as it is.
    feature_center : {"zero", "label_names"}
        What is taken off that vector first: nothing, or the mean vector of the labels' own
        names, which are public. Under noise it pays not to spend the clipping norm on what
        all texts have in common.
    head_start : {"zero", "label_names"}
        Where a classification head starts: at zero, or at the features of the labels' own
        names, which are public and cost no privacy.
    precision : {"float32", "bfloat16"}
        In what the frozen base model computes; adapters and heads are always float32.
    """

    path: str
    max_length: PositiveInt = 128
    pooling: Literal["mean", "cls"] = "mean"
    feature_scale: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 10.0
    feature_center: Literal["zero", "label_names"] = "zero"
    head_start: Literal["zero", "label_names"] = "zero"
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _centred_features_have_a_length(self) -> Self:
        if self.feature_center != "zero" and self.feature_scale == 0:
            raise ValueError("feature_center needs a feature_scale above 0")
        return self


class LoraSection(Section):
    """LoRA adapters (Hu et al. 2021).

    Attributes
    ----------
    rank : int
        Inner width; 0 trains the classification head alone.
    alpha : float
        The adapter's output is scaled by ``alpha / rank``.
    target_modules : "auto" or list of str
        Names of the linear layers that get an adapter; "auto" takes query and value.
    last_layers : int, optional
        Adapt only this many layers, counted from the output; all when left out.
    freeze_a : bool
        Train B alone and leave A at its random start (FFA-LoRA, Sun et al. 2024): half the
        values to noise and to send, and averaged updates are exactly the averaged product.
    """

    rank: Annotated[int, Field(ge=0)] = 8
    alpha: PositiveFloat = 16.0
    target_modules: Literal["auto"] | tuple[str, ...] = "auto"
    last_layers: PositiveInt | None = None
    freeze_a: bool = False
