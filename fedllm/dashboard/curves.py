"""Curves as inline SVG, drawn by the server: no script, and no style that a strict policy forbids.

Matplotlib, which draws the reports, writes its styles into attributes, which the page's policy
forbids, and cannot follow a reader's light or dark. Series differ in dashes and markers as well as
in colour, so that they are told apart in grey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from markupsafe import Markup, escape

from fedllm.visible import visible

_WIDTH, _HEIGHT = 400.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 14.0, 18.0, 40.0
_TICKS = 5
# Between two words on one another, in the drawing's units.
_LINE = 13.0
# More markers than this run into one another.
_MOST_MARKERS = 24
_MOST_POINTS = 600
# Of what is drawn: differences and margins of larger figures have no number.
_LARGEST = 1e300
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "1 2", "6 2 1 2 1 2")
MOST_SERIES = len(_DASHES)


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes
    ----------
    name : str
        For the legend.
    points : sequence of (float, float)
        From left to right; what is not finite, or nearly so, is left out.
    """

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes
    ----------
    key : str
        Letters and digits; no other chart of the page has it.
    title : str
        What is shown, for a heading and for those who do not see it.
    svg : Markup
        The drawing.
    legend : tuple of (str, Markup)
        Each series' name, and a sample of its look.
    headings, rows : tuple
        The same as a table.
    """

    key: str
    title: str
    svg: Markup
    legend: tuple[tuple[str, Markup], ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def number_text(value: float) -> str:
    """Write a figure with four significant digits."""
    return f"{value:.4g}"


def chart(
    key: str,
    title: str,
    series: Sequence[Series],
    across: str = "round",
    limit: tuple[str, float] | None = None,
    text: Callable[[float], str] = number_text,
    until: float = 0.0,
) -> Chart | None:
    """Draw curves over rounds; None where there is no point.

    Parameters
    ----------
    key, title : str
        See `Chart`.
    series : sequence of Series
        At most `MOST_SERIES`.
    across : str
        What the horizontal axis counts.
    limit : (str, float), optional
        Name and height of a line from side to side.
    text : callable, optional
        Writes a figure.
    until : float, optional
        The horizontal axis goes at least so far.
    """
    known = [Series(one.name, _finite(one.points)) for one in series]
    known = [one for one in known if one.points]
    if not known:
        return None
    frame = _Frame.around(known, limit[1] if limit else None, until)
    parts = [*frame.axes(across)]
    for number, one in enumerate(known):
        parts += _curve(frame, number, one)
    parts += _last_values(frame, known, text)
    if limit is not None:
        parts.append(frame.limit(limit[1]))
    words = f"{visible(title)}. {'; '.join(_in_words(one, text) for one in known)}."
    if limit is not None:
        words += f" {visible(limit[0])}: {text(limit[1])}."
    svg = Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
    ).format(_text(_WIDTH), _text(_HEIGHT), words, Markup("").join(parts))
    legend = [(visible(one.name), _sample(number)) for number, one in enumerate(known)]
    if limit is not None:
        legend.append((visible(limit[0]), _SAMPLE_OF_LIMIT))
    return Chart(key, visible(title), svg, tuple(legend), *_table(known, across, text))


def bar(share: float) -> Markup:
    """Draw a part of a whole, from 0 to 1, as a bar; its figure stands beside it."""
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="10"></rect>'
        '<rect class="part" width="{}" height="10"></rect></svg>'
    ).format(_text(100 * min(1.0, max(0.0, share))))


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, series: Sequence[Series], limit: float | None, until: float) -> _Frame:
        across = [x for one in series for x, _ in one.points]
        across += [until] if until > min(across) else []
        values = [y for one in series for _, y in one.points]
        values += [limit] if limit is not None else []
        left, right, low, high = min(across), max(across), min(values), max(values)
        room = (high - low) * 0.08 or abs(high) * 0.1 or 0.5
        # What is no less than nothing is not drawn below it.
        bottom = max(0.0, low - room) if low >= 0 else low - room
        return cls(left, right if right > left else left + 1, bottom, high + room)

    def x(self, value: float) -> float:
        share = (value - self.left) / (self.right - self.left)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self, across: str) -> Iterator[Markup]:
        bottom = _HEIGHT - _BOTTOM
        for value in _ticks(self.low, self.high):
            height = _text(self.y(value))
            yield Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"></line>').format(
                _text(_LEFT), _text(_WIDTH - _RIGHT), height, height
            )
            yield _words(_LEFT - 7, self.y(value) + 4, _tick(value), "end")
        for value in _ticks(self.left, self.right, whole=True):
            yield _words(self.x(value), bottom + 17, _tick(value), "middle")
        yield _words((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, across, "middle")

    def limit(self, value: float) -> Markup:
        return Markup('<line class="limit" x1="{}" x2="{}" y1="{}" y2="{}"></line>').format(
            _text(_LEFT), _text(_WIDTH - _RIGHT), _text(self.y(value)), _text(self.y(value))
        )


def _curve(frame: _Frame, number: int, one: Series) -> list[Markup]:
    points = _thinned(one.points, _MOST_POINTS)
    path = " ".join(f"{_text(frame.x(x))},{_text(frame.y(y))}" for x, y in points)
    line = Markup('<polyline class="line s{}" points="{}"{}></polyline>')
    marks = [_marker(number, frame.x(x), frame.y(y)) for x, y in _thinned(points, _MOST_MARKERS)]
    return [line.format(number, path, _dashes(number)), *marks]


def _last_values(
    frame: _Frame, series: Sequence[Series], text: Callable[[float], str]
) -> list[Markup]:
    """Write the last figure of each series at its end, none on another."""
    ends = sorted((one.points[-1] for one in series), key=lambda point: -frame.y(point[1]))
    found, free = list[Markup](), _HEIGHT - _BOTTOM
    for x, y in dict.fromkeys(ends):
        height = min(frame.y(y) - 9, free)
        free = height - _LINE
        # Of many series that end together, those that are left have no room.
        if height > _LINE / 2:
            near = frame.x(x) < _WIDTH / 4
            anchor = "start" if near else "end"
            found.append(_words(frame.x(x), height, text(y), anchor, "value"))
    return found


def _dashes(number: int) -> Markup:
    dashes = _DASHES[number % MOST_SERIES]
    return Markup(' stroke-dasharray="{}"').format(dashes) if dashes else Markup("")


def _marker(number: int, x: float, y: float) -> Markup:
    shape = number % 4
    if shape == 0:
        return Markup('<circle class="mark s{}" cx="{}" cy="{}" r="3"></circle>').format(
            number, _text(x), _text(y)
        )
    corners = (
        ((-3, -3), (3, -3), (3, 3), (-3, 3)),
        ((0, -4), (4, 3), (-4, 3)),
        ((0, -4), (4, 0), (0, 4), (-4, 0)),
    )[shape - 1]
    path = " ".join(f"{_text(x + dx)},{_text(y + dy)}" for dx, dy in corners)
    return Markup('<polygon class="mark s{}" points="{}"></polygon>').format(number, path)


def _sample(number: int) -> Markup:
    line = Markup('<line class="line s{}" x1="1" x2="35" y1="7" y2="7"{}></line>')
    return Markup('<svg class="sample" viewBox="0 0 36 14" aria-hidden="true">{}{}</svg>').format(
        line.format(number, _dashes(number)), _marker(number, 18, 7)
    )


_SAMPLE_OF_LIMIT = Markup(
    '<svg class="sample" viewBox="0 0 36 14" aria-hidden="true">'
    '<line class="limit" x1="1" x2="35" y1="7" y2="7"></line></svg>'
)


def _words(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        kind, _text(x), _text(y), anchor, escape(visible(text))
    )


def _text(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _tick(value: float) -> str:
    return f"{value:.6g}"


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if abs(x) <= _LARGEST and abs(y) <= _LARGEST]


def _thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return every so many points, and the last one."""
    step = max(1, ceil(len(points) / most))
    return [*points[:-1:step], points[-1]]


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round numbers from low to high."""
    wide = (high - low) / _TICKS
    unit = 10.0 ** floor(log10(wide))
    step = next(unit * times for times in (1, 2, 5, 10) if unit * times >= wide)
    step = max(1.0, step) if whole else step
    first, last = ceil(low / step), floor(high / step)
    return [number * step for number in range(first, last + 1)]


def _in_words(one: Series, text: Callable[[float], str]) -> str:
    (first_at, first), (last_at, last) = one.points[0], one.points[-1]
    name = visible(one.name)
    if len(one.points) == 1:
        return f"{name}: {text(first)} at {_tick(first_at)}"
    lowest, highest = (pick(y for _, y in one.points) for pick in (min, max))
    return (
        f"{name}: {text(first)} at {_tick(first_at)}, {text(last)} at "
        f"{_tick(last_at)}; between {text(lowest)} and {text(highest)}"
    )


def _table(
    series: Sequence[Series], across: str, text: Callable[[float], str]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    columns = [dict(one.points) for one in series]
    places = sorted({x for column in columns for x in column})
    rows = tuple((_tick(x), *(text(c[x]) if x in c else "" for c in columns)) for x in places)
    return (across, *(visible(one.name) for one in series)), rows
