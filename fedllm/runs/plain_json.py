"""JSON of a run folder: what is written can be read back, and what cannot be read is named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedllm.canonical import read_json
from fedllm.errors import ConfigError, FedllmError

_REMEDY = "restore the file from a backup, or repeat the run"


def damaged(where: str, what: str, remedy: str = _REMEDY) -> ConfigError:
    """Return the error that names a damaged place in a file and says what to do."""
    return ConfigError(f"{where}: {what}", remedy)


def finite(value: Any) -> Any:
    """Return plain values with null for every number that is not finite: JSON has none."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_line(value: Any) -> str:
    """Return a value as one line of JSON, without the line's end."""
    return json.dumps(finite(value), ensure_ascii=False, allow_nan=False)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that is one JSON object.

    Raises
    ------
    FedllmError
        If it is missing, is no UTF-8 or no JSON object; names the file.
    """
    return parse_object(to_text(_content(path), str(path)), str(path))


def read_objects(path: Path, nan: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a file of JSON Lines: each object, with the words for its place.

    Parameters
    ----------
    nan : bool
        Whether NaN and Infinity are read, as None; files of earlier versions may hold them.

    Raises
    ------
    FedllmError
        If it is missing, or a line is no UTF-8 or no JSON object; names the line.
    """
    content = _content(path)
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1] if lines[-1] == b"" else lines, start=1):
        where = f"{path}, line {number}"
        try:
            value = parse_object(to_text(line, where), where, nan)
        except FedllmError as error:
            if number < len(lines):
                raise
            raise damaged(
                error.message,
                "the line is cut off",
                "go on with --resume, which writes it again; or remove the line",
            ) from None
        yield where, value


def parse_object(text: str, where: str, nan: bool = False) -> dict[str, Any]:
    """Parse a JSON object as `fedllm.canonical.read_json` does.

    Raises
    ------
    FedllmError
        If it is none; ``where`` names it.
    """
    try:
        value = read_json(text, nan=nan)
    except ValueError:
        raise damaged(where, "is not valid JSON") from None
    if not isinstance(value, dict):
        raise damaged(where, "is not a JSON object")
    return value


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", "give the folder of a finished run") from None
    except OSError as error:
        raise damaged(str(path), f"cannot be read ({error.strerror})") from None


def to_text(content: bytes, where: str) -> str:
    """Decode UTF-8.

    Raises
    ------
    FedllmError
        If it is none; ``where`` names it.
    """
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise damaged(where, "cannot be read as UTF-8 text") from None
