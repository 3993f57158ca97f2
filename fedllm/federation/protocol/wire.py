"""The form of all messages: a strict JSON header and named blobs of bytes."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from fedllm.canonical import canonical_json, read_object, sha256_hex
from fedllm.errors import PeerError

MAX_HEADER_BYTES = 16 << 20
_SAME_VERSION = "install the same version of fedllm at all parties"


class Header(BaseModel):
    """The JSON part of a message: frozen, no unknown keys, no conversions of type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


@dataclass(frozen=True)
class Wire:
    """Base of all messages: a dataclass with a ``header`` and fields of bytes."""

    def to_wire(self) -> tuple[str, dict[str, bytes]]:
        """Return the header as JSON and the blobs by name."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "header"]
        header: Header = self.header  # type: ignore[attr-defined]
        return header.model_dump_json(), {name: getattr(self, name) for name in names}

    @classmethod
    def from_wire(cls, header: str, blobs: Mapping[str, bytes]) -> Self:
        """Check and read what `to_wire` wrote.

        Raises
        ------
        PeerError
            If a part is missing, too many, or of the wrong form.
        """
        if len(header) > MAX_HEADER_BYTES:
            raise PeerError(f"a {cls.__name__} message has a header of {len(header)} bytes")
        hints = _hints(cls)  # type: ignore[arg-type]
        if set(blobs) != hints.keys() - {"header"}:
            raise PeerError(f"a {cls.__name__} message has the parts {sorted(blobs)}")
        return cls(header=parse_header(hints["header"], header), **blobs)  # type: ignore[call-arg]


@lru_cache
def _hints(message: type[Wire]) -> dict[str, Any]:
    return typing.get_type_hints(message)


H = typing.TypeVar("H", bound=Header)


def parse_header(kind: type[H], text: str) -> H:
    """Read a JSON header strictly.

    Raises
    ------
    PeerError
        If a key is unknown, missing, repeated or of the wrong type; the message repeats no value.
    """
    try:
        read_object(text)
        return kind.model_validate_json(text)
    except ValidationError as error:
        where = sorted({".".join(map(str, item["loc"])) for item in error.errors()})
        raise PeerError(
            f"a {kind.__name__} is malformed at {', '.join(where[:5])}", _SAME_VERSION
        ) from None
    except ValueError:
        raise PeerError(f"a {kind.__name__} is not JSON of one meaning", _SAME_VERSION) from None


def digest(value: str | bytes | dict[str, Any]) -> str:
    """Return the SHA-256 of text, bytes or canonical JSON, in hexadecimal."""
    return sha256_hex(canonical_json(value) if isinstance(value, dict) else value)
