"""Names of base models that mean the same on every machine."""

from __future__ import annotations

import re
from pathlib import Path

# How a hub's cache names the folder of a repository's revision.
# As the hub takes them.
_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
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


def is_repository(name: str) -> bool:
    """Tell whether a name is one of a repository, ORG/NAME."""
    return _REPOSITORY.fullmatch(name) is not None and not any(w in name for w in ("..", "--"))


def cached_folder(repository: str) -> Path | None:
    """Return where a repository's newest snapshot lies in this machine's hub cache; else None.

    The cache is where ``HF_HOME`` or ``HF_HUB_CACHE`` say. Nothing is fetched.
    """
    from transformers.utils import cached_file

    try:
        found = cached_file(repository, "config.json", local_files_only=True)
    except OSError:
        return None
    return None if found is None else Path(found).parent
