"""Text of others, shown as it is: what steers a terminal or a page becomes an escape."""

from __future__ import annotations

import unicodedata

# Control and format characters (escape sequences, bidirectional overrides, what has no width),
# lone surrogates, private and unassigned code points, and separators of lines.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def is_hidden(character: str) -> bool:
    """Tell whether a character is not drawn, or changes how others are."""
    return unicodedata.category(character) in _HIDDEN


def visible(text: str, keep: str = "") -> str:
    r"""Return text with every hidden character written as an escape, such as ``\x1b``.

    Parameters
    ----------
    text : str
        A name, a label or a message that another party or a file gave.
    keep : str
        Characters to leave alone, such as line feeds in text of several lines.
    """
    if text.isprintable():
        return text
    return "".join(_escape(c) if is_hidden(c) and c not in keep else c for c in text)


def quoted(name: str) -> str:
    """Return a name in quotation marks, every hidden character written as an escape."""
    return f"'{visible(name)}'"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
