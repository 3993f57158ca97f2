"""Numbers of a report as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

MOST_VALUES = 64


def number(value: Any) -> str:
    """Write a number for readers: four significant digits, thousands separated."""
    if not is_number(value):
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        return f"{mantissa}e{int(exponent)}" if exponent else mantissa
    return f"{value:,.2f}".removesuffix(".00") if abs(value) >= 100 else f"{value:.4g}"


def bound(value: float | None) -> str:
    """Write a number that must not be passed, rounded up to four significant digits."""
    if value is None or not math.isfinite(value) or value <= 0:
        return number(value)
    # The float's shortest decimal is what was recorded; its binary tail is not rounded up.
    exact = Decimal(repr(float(value)))
    step = Decimal(1).scaleb(exact.adjusted() - 3)
    return number(float(exact.quantize(step, rounding=ROUND_CEILING)))


def at_least(value: float | None) -> str:
    """Write a lower bound, rounded down to four significant digits."""
    if value is None or not math.isfinite(value) or value <= 0:
        return number(value)
    exact = Decimal(repr(float(value)))
    step = Decimal(1).scaleb(exact.adjusted() - 3)
    return number(float(exact.quantize(step, rounding=ROUND_FLOOR)))


def factor(epsilon: float) -> str:
    """Write e to the power of epsilon, rounded up; as a power of ten where it is huge."""
    if epsilon < 50:
        return bound(math.exp(epsilon))
    return f"1e{math.ceil(epsilon / math.log(10))}"


def percent(share: float) -> str:
    """Write a share of one in percent."""
    return f"{100 * share:.1f}%"


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flat(value: Any, more: str, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of nested JSON under its dotted key; long tables are cut short."""
    if isinstance(value, Mapping | list) and value:
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        for name, inner in items[:MOST_VALUES]:
            yield from flat(inner, more, f"{key}.{name}" if key else str(name))
        if len(items) > MOST_VALUES:
            yield key, more.format(count=len(items) - MOST_VALUES)
    else:
        yield key, "–" if value is None else str(value)
