"""Names of base models that mean the same on every machine."""

from __future__ import annotations

import re
from pathlib import Path

# How a hub's cache names the folder of a repository's revision.
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)")


def repository_of(folder: Path) -> str | None:
    """Return the repository that a checkpoint's folder is known to be of; None where it is not.

    Known is it in a hub's cache alone. A ``_name_or_path`` in ``config.json`` often names what the
    model was made from.
    """
    above = folder.absolute().parents
    if len(above) < 2 or above[0].name != "snapshots":
        return None
    found = _CACHED.fullmatch(above[1].name)
    return f"{found[1]}/{found[2]}" if found else None


def portable_name(fingerprint: str, repository: str | None = None) -> str:
    """Return what others find a base model by: its repository, or else its files' SHA-256."""
    return repository or f"sha256-{fingerprint}"
