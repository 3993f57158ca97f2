"""Values of what a site's service wrote down, which may be damaged or made up."""

from __future__ import annotations

from typing import Any

from fedllm.visible import visible


def text(value: Any) -> str:
    """Return a text as it may be shown.

    Raises
    ------
    TypeError
        If it is none.
    """
    if not isinstance(value, str):
        raise TypeError("not text")
    return visible(value)


def number(value: Any) -> int:
    """Return a whole number of at least 0.

    Raises
    ------
    TypeError
        If it is none.
    """
    if type(value) is not int or value < 0:
        raise TypeError("not a number")
    return value
