"""Names of sites for people, in any script, beside the safe names that everything else uses."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

MAX_LETTERS = 100


def complaint(titles: Mapping[str, str]) -> str | None:
    """Return what is wrong with titles by the sites' safe names; None if nothing is.

    A title is in Unicode's normal form C, printable, on one line, and no other site's title or
    safe name, in upper or lower case: two sites must not look the same to a person.
    """
    seen: dict[str, str] = {}
    for name, title in titles.items():
        if not title.strip() or title != title.strip() or not title.isprintable():
            return f"{title!r} cannot be shown: write it on one line, without spaces around it"
        if len(title) > MAX_LETTERS:
            return f"the name for people of '{name}' is longer than {MAX_LETTERS} letters"
        if normal(title) != title:
            return f"{title!r} is not in Unicode's normal form C"
        looks = title.casefold()
        if looks in seen:
            return f"'{seen[looks]}' and '{name}' have the same name for people: {title!r}"
        if looks in titles and looks != name:
            return f"the name for people of '{name}' is the name of another site: {title!r}"
        seen[looks] = name
    return None


def normal(title: str) -> str:
    """Return a title in Unicode's normal form C, in which equal names are equal."""
    return unicodedata.normalize("NFC", title)
