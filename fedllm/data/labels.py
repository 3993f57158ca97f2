"""Labels that are different texts and look like one."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

from fedllm.data.spelling import read_aloud, seen
from fedllm.errors import DataError

# What is longer is a text in the label's column.
_LONGEST, _MOST = 100, 1000
# Shorter ones are codes, and longer ones are not shown.
_WORD, _SHORT = 4, 40
# Part of another label's records below which a label that is nearly the same may be a slip.
_RARE = 0.1
_SHOWN = 5


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


@dataclass(frozen=True)
class Doubt:
    """What looks wrong in a site's labels; names labels and counts, for the site's own people.

    Attributes
    ----------
    found, remedy : str
        What, and what to do.
    """

    found: str
    remedy: str


def doubts(records_of: Mapping[str, int], column: str = "data.label") -> list[Doubt]:
    """Look for labels that may be one label, or none.

    Parameters
    ----------
    records_of : Mapping of str to int
        How many records have each label.
    column : str
        The key that names their column.

    Returns
    -------
    list of Doubt
        Labels that differ by space, case or characters alone, or by one letter, where one is
        rare; labels with a single record. Where nearly each record has a label of its own, none
        of them is named: they may be texts, or names of persons.
    """
    if 1 < len(records_of) > sum(records_of.values()) / 2:
        return [
            Doubt(
                f"{len(records_of)} labels for {sum(records_of.values())} records",
                f"check that {column} names the column of the label",
            )
        ]
    told = []
    if pairs := _alike(records_of):
        shown = [_pair(one, other, records_of) for one, other in pairs[:_SHOWN]]
        told.append(
            Doubt(
                f"labels that may be one (and their records): {_joined(shown, len(pairs))}",
                "write each label in one way, the coordinator's; others are left out of training",
            )
        )
    if single := sorted(label for label, count in records_of.items() if count == 1):
        shown = [repr(label) if len(label) <= _SHORT else "a long one" for label in single[:_SHOWN]]
        told.append(
            Doubt(
                f"labels with one record only: {_joined(shown, len(single))}",
                "check their spelling; nothing can be learned of them here",
            )
        )
    return told


def _pair(one: str, other: str, records_of: Mapping[str, int]) -> str:
    # Of what looks the same, each letter is spelled out.
    form = ascii if seen(one) == seen(other) else repr
    return f"{form(one)} ({records_of[one]}) and {form(other)} ({records_of[other]})"


def _joined(shown: Sequence[str], count: int) -> str:
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")


def _alike(records_of: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return pairs of labels that may be one label, the one with more records first."""
    groups: dict[str, set[str]] = {}
    for label in records_of:
        if len(label) <= _LONGEST:
            form = read_aloud(label)
            for key in (form, *(form[:i] + form[i + 1 :] for i in range(len(form)))):
                groups.setdefault(key, set()).add(label)
    pairs = {
        (one, other)
        for group in groups.values()
        for one, other in permutations(group, 2)
        if (records_of[one], other) > (records_of[other], one)
    }
    return sorted(pair for pair in pairs if _may_be_one(*pair, records_of))


def _may_be_one(one: str, other: str, records_of: Mapping[str, int]) -> bool:
    """Tell whether a label may be another, rarer one, misspelt."""
    forms = read_aloud(one), read_aloud(other)
    if forms[0] == forms[1]:
        return True
    rare = records_of[other] <= max(1, records_of[one] * _RARE)
    return rare and min(map(len, forms)) >= _WORD and _one_edit(*forms)


def _one_edit(one: str, other: str) -> bool:
    """Tell whether a letter more, less, swapped with its neighbour or another makes the other.

    Digits do not count: codes differ by one.
    """
    start = _same(one, other)
    end = _same(one[start:][::-1], other[start:][::-1])
    parts = one[start : len(one) - end], other[start : len(other) - end]
    if any(sign.isdigit() for part in parts for sign in part):
        return False
    return max(map(len, parts)) <= 1 or (len(parts[0]) == 2 and parts[0] == parts[1][::-1])


def _same(one: str, other: str) -> int:
    """Return how many letters two texts begin alike."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def nearest(label: str, labels: Sequence[str]) -> str | None:
    """Return which of ``labels`` is most like a label that is none of them; None if none is.

    Long ones, and those after the first thousand, are not looked at: a coordinator chooses them,
    and a site that took long over a foreign label would tell that it has one.
    """
    if len(label) > _LONGEST:
        return None
    compared = [one for one in labels[:_MOST] if len(one) <= _LONGEST]
    forms = {read_aloud(one): one for one in reversed(compared)}
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
