"""One form of bytes for what is hashed, signed or compared, and strict reading of it.

Formats that are stored are canonical JSON behind a label of their own; statements that live
within a run are `signing_bytes`. Everything that comes from a file or a peer is read by
`read_json` and `from_hex`, which say one kind of error for whatever is wrong.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cryptography.exceptions import InternalError, UnsupportedAlgorithm

from fedllm.errors import ConfigError, FedllmError

# Nothing of ours nests deeper than eight.
MAX_DEPTH = 32

# No float is as large; `float` of such a whole number is an OverflowError.
_TOO_LARGE = 1 << 1023

# What Python and its libraries raise over foreign values of any type and size.
UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    UnsupportedAlgorithm,
    InternalError,
)


def canonical_json(value: Any) -> bytes:
    """Return the one JSON encoding of plain values: sorted keys, no spaces, ASCII, no NaN.

    The idea of RFC 8785, without its rules for numbers: Python's own spelling of them stays.

    Raises
    ------
    ConfigError
        If the value holds a NaN, an infinity or something that JSON cannot say.
    """
    try:
        text = json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"a value has no canonical JSON form ({type(error).__name__})",
            "use finite numbers, text, lists and tables",
        ) from None
    return text.encode("ascii")


def labelled_json(label: str, value: Any) -> bytes:
    """Return what is signed of a stored document: its type, and its canonical JSON."""
    return label.encode() + b"\x1f" + canonical_json(value)


def read_json(content: str | bytes, *, nan: bool = False) -> Any:
    """Read JSON that has one meaning only.

    Parameters
    ----------
    content : str or bytes
        From a file or a peer; bytes are UTF-8.
    nan : bool
        Whether NaN and Infinity are read, as None: figures of earlier versions hold them.

    Raises
    ------
    ValueError
        If it is not UTF-8 or not JSON, repeats a key of an object, holds a number that is not
        finite or that no float comes near, or half of a surrogate pair, or nests deeper than
        `MAX_DEPTH`.
    """
    text = content if isinstance(content, str) else str(content, "utf-8")
    if not text.isascii():
        text.encode()
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_none if nan else _refuse_constant
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    # Text that is UTF-8 has half of a surrogate pair in such escapes alone.
    _check(value, MAX_DEPTH, strings="\\ud" in text or "\\uD" in text)
    return value


def read_object(content: str | bytes) -> dict[str, Any]:
    """Read one JSON object; as `read_json`."""
    value = read_json(content)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _none(name: str) -> None:
    return None


def _check(value: Any, depth: int, strings: bool) -> None:
    """Look at a value and all inside it; at strings where they have to be looked at."""
    level = [value]
    while level:
        below: list[Any] = []
        for one in level:
            # One of json's own types, never one derived of it.
            kind = type(one)
            if kind is str:
                if strings:
                    one.encode()
            elif kind is dict or kind is list:
                if depth == 0:
                    raise ValueError("nested too deeply")
                below += one.values() if kind is dict else one
                if strings and kind is dict:
                    below += one
            elif kind is float:
                if not math.isfinite(one):
                    raise ValueError("a number is not finite")
            elif kind is int and abs(one) >= _TOO_LARGE:
                raise ValueError("a number is too large")
        level, depth = below, depth - 1


def from_hex(text: object, size: int | None = None) -> bytes:
    """Read bytes from hexadecimal digits, without the spaces that Python would allow.

    Parameters
    ----------
    text : object
        From a file or a peer; anything but text is refused.
    size : int, optional
        How many bytes they must be.

    Raises
    ------
    ValueError
        If it is anything else.
    """
    if not isinstance(text, str):
        raise ValueError("not hexadecimal digits")
    found = bytes.fromhex(text)
    if 2 * len(found) != len(text) or size not in (None, len(found)):
        raise ValueError("not hexadecimal digits")
    return found


def sha256_hex(content: bytes | memoryview | str) -> str:
    """Return the SHA-256 of bytes, or of text as UTF-8, as 64 hexadecimal digits."""
    return sha256(content).hex()


def sha256(content: bytes | memoryview | str) -> bytes:
    """Return the SHA-256 of bytes, or of text as UTF-8: 32 bytes."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).digest()


def signing_bytes(label: str, *bodies: bytes | str | int) -> bytes:
    """Return the bytes to sign, or to derive a key from, for a statement of one type.

    A pre-authentication encoding as DSSE and PASETO have it: the number of parts, then each
    part behind its length, the label of the type first. No two lists of parts give the same
    bytes, so a signature of one statement never fits another.

    Parameters
    ----------
    label : str
        Type and version of the statement, such as "fedllm.survivors.v3".
    bodies : bytes, str or int
        What it says, in an order that the type fixes; text as UTF-8, numbers in decimal.
    """
    parts = [label.encode(), *map(_body, bodies)]
    # Every number has 8 bytes, little endian.
    encoded = [len(part).to_bytes(8, "little") + part for part in parts]
    return b"".join([len(parts).to_bytes(8, "little"), *encoded])


def _body(value: bytes | str | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@contextmanager
def reading(damaged: FedllmError) -> Iterator[None]:
    """Raise ``damaged`` for whatever goes wrong while foreign values are taken apart.

    An error of fedllm's own comes through: it says more.
    """
    try:
        yield
    except UNREADABLE:
        raise damaged from None
