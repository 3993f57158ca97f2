"""What is promised in words: an epsilon is never rounded down, and never to nothing."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

_DIGITS = 4
# In which runs whose budgets are accounted differ; see docs/privacy-accounting.md.
ADJACENCY = "zero-out: the content of one unit is replaced by an empty one that contributes nothing"


def epsilon_text(value: float | None) -> str:
    """Write an epsilon with four significant digits, rounded up: it is a bound.

    "-" where there is none, "unlimited" where nothing bounds it.
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "unlimited"
    # The float's shortest decimal is what was recorded; its binary tail is not rounded up.
    exact = Decimal(repr(float(value)))
    if not exact:
        return "0"
    step = Decimal(1).scaleb(exact.adjusted() - _DIGITS + 1)
    return f"{float(exact.quantize(step, rounding=ROUND_CEILING)):.{_DIGITS}g}"
