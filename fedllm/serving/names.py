"""The names by which a service's models are chosen; found before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedllm.errors import ConfigError
from fedllm.runs.start import is_released

OWN = "-own"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model lies.

    Attributes
    ----------
    own : bool
        Whether it is served with the site's own layer on top.
    """

    folder: Path
    own: bool = False


def named_models(locations: Sequence[str], with_own: bool) -> dict[str, Place]:
    """Return where models lie, by name: the folder's own, or of ``NAME=FOLDER``.

    Parameters
    ----------
    with_own : bool
        Whether each run is there a second time, with the site's own layer on top, under its name
        with "-own" behind.

    Raises
    ------
    ConfigError
        If two have one name, or a name cannot stand in a request.
    """
    found: dict[str, Place] = {}
    for given in locations:
        name, folder = _named(given)
        kinds = {name: Place(folder)}
        if with_own and is_released(folder):
            kinds[f"{name}{OWN}"] = Place(folder, own=True)
        for called, place in kinds.items():
            if called in found:
                raise ConfigError(
                    f"two models are called {called}", "name one of them: NAME=FOLDER"
                )
            found[called] = place
    return found


def _named(given: str) -> tuple[str, Path]:
    name, mark, rest = given.partition("=")
    place = Path(rest if mark else given)
    if not mark:
        whole = place.absolute()
        name = whole.parent.name if whole.name == "adapter" else whole.name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{given}: {name!r} is no name for a model",
            "name it with letters, digits, dots, - and _: NAME=FOLDER",
        )
    return name, place
