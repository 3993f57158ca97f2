"""Names of sites for people, in any script, beside the safe names that everything else uses."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from fedllm.canonical import read_object, sha256_hex

MAX_LETTERS = 100
_SAFE_LETTERS = 50
_MOST_BYTES = 16 * 2**20
# A ledger lies in ``ledgers`` of a run folder, or in ``state`` of a kit, beside a roster.
_ROSTER = "roster.json"


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
            whose = f"the name for people of '{name}'" if name else "it"
            return f"{whose} is longer than {MAX_LETTERS} letters"
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


def shown(name: str, titles: Mapping[str, str]) -> str:
    """Return a site's name as people should see it: its title, if it has one, and the name."""
    title = titles.get(name)
    return f"{title} ({name})" if title else name


def safe_name(title: str) -> str:
    """Return the name that a site gets whose people write ``title``.

    Lower-case letters, digits and hyphens, as near to the title as they come; where no letter
    of it has such a form, a piece of its SHA-256.
    """
    text = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    name = re.sub(r"[^a-z0-9]+", "-", text)[:_SAFE_LETTERS].strip("-")
    return name or f"site-{sha256_hex(normal(title))[:12]}"


def titles_beside(path: Path) -> dict[str, str]:
    """Return the titles in the roster that lies beside a ledger or in a run folder.

    For showing names to people only: the roster's signature is not checked here. Nothing where
    there is none, or where its titles could mislead.

    Parameters
    ----------
    path : Path
        A run folder, a folder of ledgers, or a ledger in one of them or in a kit.
    """
    for folder in (path, *path.absolute().parents[:2]):
        try:
            if (folder / _ROSTER).stat().st_size > _MOST_BYTES:
                return {}
            if not (folder / _ROSTER).is_file():
                continue
            found = read_object((folder / _ROSTER).read_bytes())
        except (OSError, ValueError):
            continue
        # Signed by a federation's root, or of a simulation.
        found = found["roster"] if isinstance(found.get("roster"), dict) else found
        titles = found.get("titles", {})
        if not isinstance(titles, dict) or not all(isinstance(t, str) for t in titles.values()):
            return {}
        return {} if complaint(titles) else titles
    return {}
