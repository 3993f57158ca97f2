"""Which model answers are of, told by its files alone: torch need not be there for it."""

from __future__ import annotations

from pathlib import Path

from fedllm.models.contents import fingerprints
from fedllm.rating.answers import Model
from fedllm.runs.start import GIVEN, find_start, is_released


def model_at(location: Path) -> Model:
    """Tell which model lies in a folder, without loading it.

    Raises
    ------
    ConfigError, CheckpointError
        If there is none; see `fedllm.serving.usable.open_usable`, which loads it.
    """
    if not is_released(location) and (location / "config.json").exists():
        found = fingerprints(location).current
    else:
        found = str(find_start(str(location), GIVEN).about["adapter"])
    return Model(name=location.resolve().name, fingerprint=found)
