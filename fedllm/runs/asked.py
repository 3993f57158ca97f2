"""Whether a run folder's ``run.toml`` still asks for what the run was begun and finished with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig
from fedllm.mechanisms import mechanism_of
from fedllm.runs import names
from fedllm.runs.checkpoints import begun_with
from fedllm.runs.folder import is_same_run
from fedllm.visible import visible


@dataclass(frozen=True, slots=True)
class Difference:
    """A key of ``run.toml``, and what the run's summary says of it.

    Attributes
    ----------
    key, told : str
        The key in ``run.toml``, and the one in ``summary.json``.
    asked, said : object
        The two values.
    """

    key: str
    told: str
    asked: object
    said: object

    def __str__(self) -> str:
        return visible(f"{self.key} is {self.asked}, {self.told} of summary.json says {self.said}")


def differences(config: RunConfig, summary: Mapping[str, Any]) -> list[Difference]:
    """Return where a configuration asks for something else than a finished run's summary says.

    A key that the summary lacks, or that older versions did not write, is not compared.

    Parameters
    ----------
    config : RunConfig
        ``run.toml``.
    summary : mapping
        ``summary.json`` as plain values.
    """
    return [
        Difference(key, told, asked, said)
        for key, asked, told, said in _pairs(config, summary)
        if asked != said
    ]


def begun_otherwise(folder: Path, config: RunConfig) -> bool:
    """Tell whether a run's checkpoints were made with another configuration than its own now.

    Raises
    ------
    CheckpointError
        If the newest checkpoint cannot be read.
    """
    digest = begun_with(folder / names.CHECKPOINTS)
    return digest is not None and not is_same_run(digest, config, folder)


def _pairs(
    config: RunConfig, summary: Mapping[str, Any]
) -> Iterator[tuple[str, object, str, object]]:
    encryption = config.encryption
    asked: dict[str, tuple[str, object]] = {
        "run": ("name", config.name),
        "task": ("task", config.task),
        "rounds": ("rounds.count", config.rounds.count),
        "privacy.promised": ("privacy.epsilon", config.privacy.epsilon),
        "privacy.delta": ("privacy.delta", config.privacy.delta),
        "privacy.unit": ("privacy.unit", config.unit),
        "privacy.noise": ("privacy.noise", mechanism_of(config).wording.noise),
        "encryption.scheme": ("encryption.scheme", encryption.scheme),
        "encryption.masks": ("encryption.masks", encryption.masked),
    }
    if encryption.scheme == "bfv":
        asked["encryption.bits"] = ("encryption.bits", encryption.bits)
    for told, (key, value) in asked.items():
        section, dot, name = told.rpartition(".")
        table = summary.get(section) if dot else summary
        if isinstance(table, Mapping) and name in table:
            yield key, value, told, table[name]
