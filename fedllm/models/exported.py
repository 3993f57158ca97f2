"""Which files an export consists of, so that half of them is not taken for the whole."""

from __future__ import annotations

from pathlib import Path

from fedllm.files import write_json
from fedllm.models.contents import EXPORTED, files_that_count

_LABEL = "fedllm.export.v1"


def write_exported(folder: Path, form: str) -> None:
    """Write down a folder's files that count, and their sizes; `check_contents` looks at them."""
    sizes = {name: path.stat().st_size for name, path in files_that_count(folder).items()}
    write_json(folder / EXPORTED, {"label": _LABEL, "format": form, "files": sizes})
