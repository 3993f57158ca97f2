"""The budget as a gauge: an inline drawing without style of its own, and the same in words."""

from __future__ import annotations

import math

from markupsafe import Markup

from fedllm.overview.budget import Budget
from fedllm.overview.wording import left_text
from fedllm.privacy.accounting.words import epsilon_text

_WIDTH, _HEIGHT = 400.0, 34.0


def gauge(budget: Budget) -> Markup | None:
    """Draw what is spent, reserved and left; None where the ceiling is no number."""
    ceiling = budget.ceiling.epsilon
    if math.isinf(ceiling):
        return None
    spent = min(1.0, budget.spent / ceiling)
    released = min(spent, budget.released / ceiling)
    words = (
        f"Budget: epsilon {epsilon_text(budget.spent)} of {epsilon_text(ceiling)} is spent, "
        f"{epsilon_text(budget.reserved)} of that reserved; {left_text(budget)} is left."
    )
    return Markup(
        '<svg class="gauge" viewBox="0 0 {} {}" role="img" aria-label="{}">'
        '<rect class="track" x="1" y="1" width="{}" height="{}"></rect>'
        '<rect class="released" x="1" y="1" width="{}" height="{}"></rect>'
        '<rect class="reserved" x="{}" y="1" width="{}" height="{}"></rect>{}'
        "</svg>"
    ).format(
        _number(_WIDTH + 2),
        _number(_HEIGHT + 2),
        words,
        _number(_WIDTH),
        _number(_HEIGHT),
        _number(_WIDTH * released),
        _number(_HEIGHT),
        _number(1 + _WIDTH * released),
        _number(_WIDTH * (spent - released)),
        _number(_HEIGHT),
        _stripes(released, spent),
    )


def _stripes(released: float, spent: float) -> Markup:
    """Mark what is reserved by lines as well as by colour."""
    begin, end = 1 + _WIDTH * released, 1 + _WIDTH * spent
    line = Markup('<line class="stripe" x1="{}" x2="{}" y1="1" y2="{}"></line>')
    places = [begin + 6 * step for step in range(1, math.ceil((end - begin) / 6))]
    return Markup("").join(
        line.format(_number(x), _number(x), _number(1 + _HEIGHT)) for x in places
    )


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
