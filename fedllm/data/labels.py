"""Labels that are different texts and look like one."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Sequence

from fedllm.data.spelling import read_aloud, seen
from fedllm.errors import DataError

# What is longer is a text in the label's column.
_LONGEST = 100


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
    for form in (seen, read_aloud):
        pair = _first_pair(labels, form)
        if pair is None or (listed and form is read_aloud):
            continue
        one, other = pair
        raise DataError(
            f"{origin}: the labels {one!a} and {other!a} {_difference(one, other)}",
            "write them in one way at the coordinator and at the sites"
            + ("" if form is seen else ", or list both in data.labels if they are two classes"),
        )


def nearest(label: str, labels: Sequence[str]) -> str | None:
    """Return which of ``labels`` is most like a label that is none of them; None if none is."""
    if len(label) > _LONGEST:
        return None
    forms = {read_aloud(one): one for one in reversed(labels)}
    close = difflib.get_close_matches(read_aloud(label), forms, n=1, cutoff=0.6)
    return forms[close[0]] if close else None


def _first_pair(labels: Sequence[str], form: Callable[[str], str]) -> tuple[str, str] | None:
    first: dict[str, str] = {}
    for label in labels:
        other = first.setdefault(form(label), label)
        if other != label:
            return other, label
    return None


def _difference(one: str, other: str) -> str:
    if "".join(one.split()) == "".join(other.split()):
        return "differ by white space alone"
    if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other):
        return "are the same text in two normal forms of Unicode"
    if seen(one) == seen(other):
        return "look the same"
    if one.casefold() == other.casefold():
        return "differ by upper and lower case alone"
    return "differ by variants of the same characters alone"
