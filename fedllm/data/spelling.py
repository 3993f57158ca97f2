"""One form for texts that are different strings and look, or read, the same."""

from __future__ import annotations

import unicodedata


def seen(text: str) -> str:
    """Return what can be seen of a text: no invisible characters, one kind of white space, NFC."""
    visible = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return unicodedata.normalize("NFC", " ".join("".join(visible).split()))


def read_aloud(text: str) -> str:
    """Return what remains of a text when it is read aloud: `seen`, in one case and width."""
    folded = unicodedata.normalize("NFKC", seen(text)).casefold()
    return seen(unicodedata.normalize("NFKC", folded))
