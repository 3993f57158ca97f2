"""What to do where a package is missing that only some installations need."""

from __future__ import annotations

OFFLINE = "without internet: docs/operators/offline.md"


def remedy_of(extra: str) -> str:
    """Say how to add an extra of pyproject.toml.

    From the source folder and not by fedllm's name, for which pip would ask a package index that
    may hold something else under it.
    """
    return (
        f"add the extra '{extra}': in fedllm's source folder, with the pip of its environment, "
        f"pip install --constraint constraints.txt '.[{extra}]' ({OFFLINE})"
    )
