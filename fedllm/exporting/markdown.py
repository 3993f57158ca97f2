"""Values of others in a card, shown as they are: nothing in them is Markdown or HTML."""

from __future__ import annotations

import re
from typing import Any

from fedllm.visible import visible

# What Markdown reads anywhere as more than itself, and what it does at the beginning of a line.
_ACTIVE = re.compile(r"[\\`*_\[\]{}#|~!$]")
_BEGINS = re.compile(r"^(\d*)([-+=.)])")


def quoted(words: str) -> str:
    """Write words of others as a quotation in which nothing is a heading, code, or HTML."""
    lines = visible(words, keep="\n").split("\n")
    return "\n".join(f"> {_plain(line.strip())}".rstrip() for line in lines)


def _plain(line: str) -> str:
    """Write a line so that Markdown shows its characters as they are."""
    shown = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = _ACTIVE.sub(r"\\\g<0>", shown)
    return _BEGINS.sub(r"\1\\\2", shown)


def span(value: Any) -> str:
    """Write a value of others so that it is shown as it is."""
    return f"`{visible(str(value)).replace('`', chr(39))}`"


def cell(value: Any) -> str:
    """Write a value of others into a table."""
    return span(str(value).replace("|", "/"))
