"""What follows from equations between updates and streams of masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# An unknown: ("u", site, number) for an update, ("s", "", seed) for a stream of masks.
Unknown = tuple[str, str, Any]
Equation = Mapping[Unknown, int]
PRIME = (1 << 61) - 1


def leaks(known: Iterable[Equation], targets: Sequence[str]) -> str | None:
    """Return a site of which a combination of its own updates alone follows, or None."""
    equations = list(known)
    for target in targets:
        # Everything else is eliminated first; what is left then speaks of the target alone.
        if any(_Rows(equations, lambda u, own=("u", target): u[:2] != own).left):
            return target
    return None


def follows(equation: Equation, known: Iterable[Equation]) -> bool:
    """Tell whether an equation follows from others."""
    return not _Rows(known, lambda unknown: True).reduced(equation)


def left_without_streams(known: Iterable[Equation]) -> list[Equation]:
    """Return what equations say of updates alone, each of the result about another."""
    left = _Rows(known, lambda unknown: unknown[0] == "s").left
    rows = _Rows(left, lambda unknown: True)
    return [row for _, row in rows.solved()]


class _Rows:
    """Equations in a triangle, each with an unknown of its own that ``may`` be eliminated.

    Attributes
    ----------
    left : list of dict
        Those in which there is none.
    """

    def __init__(self, equations: Iterable[Equation], may: Callable[[Unknown], bool]) -> None:
        self._rows: list[tuple[Unknown, Equation]] = []
        self.left: list[Equation] = []
        for equation in equations:
            row = self.reduced(equation)
            pivot = next((unknown for unknown in row if may(unknown)), None)
            if pivot is None:
                self.left.append(row)
            else:
                inverse = pow(row[pivot], -1, PRIME)
                self._rows.append((pivot, {u: c * inverse % PRIME for u, c in row.items()}))

    def reduced(self, equation: Equation) -> dict[Unknown, int]:
        """Return what is left of an equation."""
        row = {unknown: value % PRIME for unknown, value in equation.items() if value}
        for pivot, kept in self._rows:
            factor = row.get(pivot, 0)
            for unknown, value in kept.items() if factor else ():
                left = (row.get(unknown, 0) - factor * value) % PRIME
                if left:
                    row[unknown] = left
                else:
                    row.pop(unknown, None)
        return row

    def solved(self) -> list[tuple[Unknown, Equation]]:
        """Return the rows with each pivot in its own alone."""
        result: list[tuple[Unknown, Equation]] = []
        for number, (pivot, row) in enumerate(self._rows):
            found = dict(row)
            for other, kept in self._rows[number + 1 :]:
                factor = found.get(other, 0)
                for unknown, value in kept.items() if factor else ():
                    left = (found.get(unknown, 0) - factor * value) % PRIME
                    if left:
                        found[unknown] = left
                    else:
                        found.pop(unknown, None)
            result.append((pivot, found))
        return result
