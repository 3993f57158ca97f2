"""What a writer of a format is given, and what it tells of what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fedllm.exporting.effect import Effect
from fedllm.exporting.probe import Probe
from fedllm.exporting.scripts import Use


@dataclass(frozen=True, eq=False)
class Settings:
    """How to write, and what must come out.

    Attributes
    ----------
    probe : Probe
        Token sequences.
    wanted : Tensor
        (N, C) float32, what the model that is to be written gives for them.
    dtype : str, optional
        In which whole checkpoints keep their weights.
    reshaped : mapping
        What a whole checkpoint's configuration has otherwise than the base's, by its keys there.
    effect : Effect, optional
        What training did, where the adapter is in the weights already; else it is asked for.
    if_lost : str
        What to do where a type of fewer bits loses what was trained.
    """

    probe: Probe
    wanted: Tensor
    dtype: str | None = None
    reshaped: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect | None = None
    if_lost: str = "take --dtype float32, or --format peft"


@dataclass(frozen=True, eq=False)
class Written:
    """What an export came to.

    Attributes
    ----------
    library : str
        The Hub's word for what loads it.
    what : str
        What lies in the folder, in a sentence.
    largest : float
        The largest difference of its logits from the run's own model.
    use : Use, optional
        How a script loads it with torch.
    script : str
        One that needs no torch; empty where there is none.
    notes : tuple of str
        What else whoever uses it should know.
    smaller : bool
        Whether it is not the model that the run measured, but one made of it.
    """

    library: str
    what: str
    largest: float
    use: Use | None = None
    script: str = ""
    notes: tuple[str, ...] = ()
    smaller: bool = False
