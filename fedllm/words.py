"""Words of others on a terminal."""

from __future__ import annotations

from rich.markup import escape

from fedllm.visible import visible


def safe(text: str) -> str:
    """Return a name or a message for rich to print as it is: no markup, nothing hidden."""
    return escape(visible(text))
