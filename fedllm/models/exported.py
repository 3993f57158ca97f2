"""Which files an export consists of, so that half of them is not taken for the whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedllm.files import write_json
from fedllm.models.contents import EXPORTED, files_that_count

_LABEL = "fedllm.export.v1"


def write_exported(folder: Path, form: str, asked: Mapping[str, Any]) -> None:
    """Write down a folder's files that count, and their sizes; `check_contents` looks at them.

    Parameters
    ----------
    form : str
        The format, or how a model was made smaller.
    asked : mapping
        What whoever asks the model must know: ``task``, ``max_length`` and ``column``.
    """
    sizes = {name: path.stat().st_size for name, path in files_that_count(folder).items()}
    sizes.pop(EXPORTED, None)
    write_json(folder / EXPORTED, {**asked, "label": _LABEL, "format": form, "files": sizes})
