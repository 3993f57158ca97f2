"""What commands print: one JSON object a line, to a file as a whole, or to standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fedllm.files import atomic_file, given_path


def write_lines(lines: Iterable[dict[str, Any]], out: Path | None) -> int:
    """Write JSON Lines, and return how many there were.

    Parameters
    ----------
    out : Path, optional
        A file, which is replaced when all lines are there; standard output when left out, where
        each line is handed on at once.

    Raises
    ------
    ConfigError, StorageError
        If the file cannot be written; one that was there is untouched.
    """
    count = 0
    if out is None:
        for line in lines:
            sys.stdout.write(_text(line))
            sys.stdout.flush()
            count += 1
        return count
    with given_path(), atomic_file(out, mode=0o600) as stream:
        for line in lines:
            stream.write(_text(line).encode())
            count += 1
    return count


def _text(line: dict[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
