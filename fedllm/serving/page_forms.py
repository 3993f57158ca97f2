"""Forms that a page on loopback sends to its own program, and no other page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

Headers = Mapping[bytes, Sequence[bytes]]
Form = dict[str, str]

_FORM = b"application/x-www-form-urlencoded"
_MOST_FIELDS = 32


def headers_of(pairs: Sequence[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """Return all values of each header, by its name in lower case."""
    found: dict[bytes, list[bytes]] = {}
    for name, value in pairs:
        found.setdefault(name.lower(), []).append(value)
    return found


def wrong_form(headers: Headers, host: bytes, most_bytes: int) -> int:
    """Return the status of a form that is not taken, 0 of one that is; reads no body."""
    # A browser says where a form comes from; another page's has another origin, or "null".
    if headers.get(b"origin") != [b"http://" + host]:
        return 403
    if headers.get(b"sec-fetch-site", [b"same-origin"]) != [b"same-origin"]:
        return 403
    kinds = headers.get(b"content-type", [b""])
    if len(kinds) != 1 or kinds[0].partition(b";")[0].strip().lower() != _FORM:
        return 415
    lengths = headers.get(b"content-length", [])
    if len(lengths) != 1 or not lengths[0].isdigit() or b"transfer-encoding" in headers:
        return 400
    return 413 if len(lengths[0]) > 9 or int(lengths[0]) > most_bytes else 0


def form_of(body: bytes) -> Form | None:
    """Return the fields of a form; None where it is none, or says one of them twice."""
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError:
        return None
    found = dict(pairs)
    return found if len(found) == len(pairs) else None
