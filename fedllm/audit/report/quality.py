"""The part about single labels and groups: a mean hides who gains little."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from fedllm.audit.report.numbers import is_number, number

# So many lines of one table; the worst come first, and the file beside the page has all.
_MOST = 12
_LOWER_IS_BETTER = ("loss", "perplexity")


def quality_parts(
    quality: Mapping[str, Any], measures: Sequence[str], texts: Mapping[str, str]
) -> Iterator[SimpleNamespace]:
    """Yield a table for labels and one for groups, where the run told any.

    Parameters
    ----------
    quality : mapping
        As ``summary.json`` has it.
    measures : sequence of str
        The task's, the most telling first.
    """
    for kind in ("label", "group"):
        found = quality.get(kind)
        if not isinstance(found, Mapping) or len(found) < 2:
            continue
        told = [m for m in measures if any(_value(part, m) is not None for part in found.values())]
        if told:
            yield _table(found, told[0], texts[kind], texts)


def site_parts(
    quality: Mapping[str, Any],
    whole: Mapping[str, Any],
    measures: Sequence[str],
    texts: Mapping[str, str],
) -> Iterator[SimpleNamespace]:
    """Yield a table of what sites' held-out records say by part, where the run asked for it.

    Parameters
    ----------
    quality : mapping
        As ``summary.json`` has it in ``site_quality``.
    whole : mapping
        What they say together, as in ``site_metrics``.
    measures : sequence of str
        The task's, the most telling first.
    """
    for kind in ("label", "group"):
        found = quality.get(kind)
        if isinstance(found, Mapping) and found:
            ends = [part.get("last") for part in found.values() if isinstance(part, Mapping)]
            measure = _told_first(measures, ends) or _told_first(measures, [whole]) or "loss"
            yield _site_table(found, whole, measure, kind, texts)


def _told_first(measures: Sequence[str], figures: Sequence[Any]) -> str:
    """Return the first measure that any of these figures has, or nothing."""
    known = [one for one in figures if isinstance(one, Mapping)]
    return next((m for m in measures if any(m in one for one in known)), "")


def _site_table(
    found: Mapping[str, Any],
    whole: Mapping[str, Any],
    measure: str,
    kind: str,
    texts: Mapping[str, str],
) -> SimpleNamespace:
    told = {
        name: value
        for name, figures in found.items()
        if (value := _value(figures, measure, "last")) is not None
    }
    sign = -1 if measure in _LOWER_IS_BETTER else 1
    names = sorted(told, key=lambda name: (sign * told[name], name))
    few = [name for name in found if name not in told]
    rows = [(name, *_site_row(found[name], measure)) for name in names[:_MOST]]
    return SimpleNamespace(
        title=texts[f"site_{kind}"].format(name=measure, count=len(found)),
        rows=[*rows, (texts["whole"], *_site_row({"last": whole}, measure))],
        few=texts["few"].format(few=len(few), count=len(found)) if few else "",
        more=texts["more"].format(more=len(names) - _MOST) if len(names) > _MOST else "",
    )


def _site_row(figures: Any, measure: str) -> tuple[str, str, str, str]:
    """Return units, the first and the last mean, and the noise of the last."""
    units = _value(figures, "units", "last")
    return (
        number(None if units is None else round(units)),
        number(_value(figures, measure, "first")),
        number(_value(figures, measure, "last")),
        number(_value(figures, f"{measure}_noise", "last")),
    )


def _table(
    found: Mapping[str, Any], measure: str, title: str, texts: Mapping[str, str]
) -> SimpleNamespace:
    lines = [
        (name, _value(figures, measure, "before"), value, _value(figures, "records"))
        for name, figures in found.items()
        if (value := _value(figures, measure)) is not None
    ]
    sign = -1 if measure in _LOWER_IS_BETTER else 1
    lines.sort(key=lambda line: (sign * line[2], line[0]))
    worse = sum(old is not None and sign * (new - old) < 0 for _, old, new, _ in lines)
    return SimpleNamespace(
        title=title.format(name=measure, count=len(lines)),
        worse=texts["worse"].format(worse=worse, count=len(lines)) if worse else "",
        more=texts["more"].format(more=len(lines) - _MOST) if len(lines) > _MOST else "",
        rows=[
            (name, number(records), number(old), number(new))
            for name, old, new, records in lines[:_MOST]
        ],
    )


def _value(figures: Any, name: str, when: str = "after") -> float | None:
    told = figures.get(when) if isinstance(figures, Mapping) else None
    value: Any = told.get(name) if isinstance(told, Mapping) else None
    return float(value) if is_number(value) else None
