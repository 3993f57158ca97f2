"""Labels that are different texts and look like one."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

from fedllm.errors import DataError


def check_distinct(labels: Sequence[str], origin: str, *, listed: bool) -> None:
    """Refuse a public set of labels in which two could be one label written in two ways.

    Records of one class would train two otherwise. Labels that nobody can tell apart (other
    white space, invisible characters, another normal form of Unicode) are always refused;
    those that differ in upper and lower case or in compatible characters (NFKC) only where
    nobody listed them.

    Parameters
    ----------
    labels : sequence of str
        The public set; each once.
    origin : str
        Where they stand, for the error.
    listed : bool
        Whether somebody wrote them down in ``data.labels``.

    Raises
    ------
    DataError
        Names two such labels, with everything but ASCII spelled out.
    """
    for form in (_seen, _read):
        pair = _first_pair(labels, form)
        if pair is None or (listed and form is _read):
            continue
        one, other = pair
        raise DataError(
            f"{origin}: the labels {one!a} and {other!a} {_difference(one, other)}",
            "write them in one way at the coordinator and at the sites"
            + ("" if form is _seen else ", or list both in data.labels if they are two classes"),
        )


def _first_pair(labels: Sequence[str], form: Callable[[str], str]) -> tuple[str, str] | None:
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(form(label), label)
        if other != label:
            return other, label
    return None


def _seen(label: str) -> str:
    """Return what can be seen of a label."""
    visible = (c for c in unicodedata.normalize("NFC", label) if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", " ".join("".join(visible).split()))


def _read(label: str) -> str:
    """Return what remains of a label when it is read aloud."""
    folded = unicodedata.normalize("NFKC", _seen(label)).casefold()
    return _seen(unicodedata.normalize("NFKC", folded))


def _difference(one: str, other: str) -> str:
    if "".join(one.split()) == "".join(other.split()):
        return "differ by white space alone"
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "are the same text in two normal forms of Unicode"
    if _seen(one) == _seen(other):
        return "look the same"
    if one.casefold() == other.casefold():
        return "differ by upper and lower case alone"
    return "differ by variants of the same characters alone"
