"""Plots of a run as inline SVG: no files, no scripts, text that the browser's fonts draw."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from fedllm.importing import importing
from fedllm.visible import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#777777")
INK, FAINT = "#333333", "#DDDDDD"
# Of limits, which no series may have.
CEILING_COLOUR = "#000000"
_LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (3, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# More curves than this cannot be told apart; the range of all is drawn instead.
_MOST_CURVES = len(COLOURS)


def styles(count: int) -> list[dict[str, Any]]:
    """Return a look for each series: no two have the same colour, line and marker together.

    Neighbours differ in all three, so that they are told apart in print without colours too.
    Holds for up to 343 series.
    """
    return [
        {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": _LINES[(i + i // len(COLOURS)) % len(_LINES)],
            "marker": _MARKERS[i % len(_MARKERS)],
        }
        for i in range(count)
    ]


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # names in any script are drawn with the reader's fonts
    "text.parse_math": False,  # a name with a dollar sign is a name
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "grid.color": "#EEEEEE",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


@contextmanager
def svg_figure(seed: str, height: float) -> Iterator[tuple[Figure, Callable[[str], Markup]]]:
    """Yield an empty figure, and what makes SVG of it with words for those who do not see it."""
    with importing():
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

    # Each plot has its own seed for element names, which must differ within one page.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": seed}):
        figure = Figure(figsize=(5.4, height), layout="constrained")
        FigureCanvasSVG(figure)

        def finish(description: str) -> Markup:
            stream = io.StringIO()
            with warnings.catch_warnings():
                # Matplotlib measures text with its own font, but the reader's font draws it.
                warnings.filterwarnings("ignore", message="Glyph .* missing from font")
                figure.savefig(
                    stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
                )
            svg = visible(stream.getvalue(), keep="\n")
            start = svg.index("<svg ") + len("<svg ")
            label = escape(visible(description))
            return Markup('<svg role="img" aria-label="{}" ').format(label) + Markup(svg[start:])  # noqa: S704

        yield figure, finish


def clean(axes: Axes) -> None:
    """Leave of a frame what is read by."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_axisbelow(True)


def _rounds_axis(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def metric_plot(
    name: str, points: Sequence[tuple[int, float]], round_label: str, description: str
) -> Markup:
    """Plot one test metric over rounds; round 0 is the model before training.

    Parameters
    ----------
    name : str
        The metric, written at the axis.
    points : sequence of (int, float)
        Round and value.
    round_label, description : str
        Words at the axis, and for those who do not see the plot.
    """
    with svg_figure(f"metric-{name}", 2.6) as (figure, finish):
        axes = figure.add_subplot()
        rounds, values = zip(*points, strict=True)
        axes.plot(rounds, values, color=COLOURS[0], marker="o", markersize=3.5)
        for index in {0, len(points) - 1}:
            axes.annotate(
                f"{values[index]:.3f}",
                (rounds[index], values[index]),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
            )
        axes.margins(x=0.06, y=0.18)
        axes.set_ylabel(visible(name))
        _rounds_axis(axes, round_label)
        clean(axes)
        return finish(description)


def epsilon_plot(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    ceiling: float | None,
    words: Mapping[str, str],
    description: str,
) -> Markup:
    """Plot what each site has spent over the rounds against what it may spend.

    Parameters
    ----------
    curves : mapping of str to sequence of (int, float)
        Round and epsilon so far, by site.
    ceiling : float, optional
        Requested for the whole run.
    words : mapping
        Texts ``round``, ``epsilon``, ``ceiling``, ``range``, ``several``.
    description : str
        For those who do not see the plot.
    """
    with svg_figure("epsilon", 2.9) as (figure, finish):
        axes = figure.add_subplot()
        alike: dict[tuple[tuple[int, float], ...], list[str]] = {}
        for site, points in curves.items():
            alike.setdefault(tuple(points), []).append(site)
        if len(alike) <= _MOST_CURVES:
            for (points, sites), look in zip(alike.items(), styles(len(alike)), strict=True):
                several = words["several"].format(count=len(sites))
                label = several if sites[1:] else visible(sites[0])
                every = max(1, len(points) // 12)
                axes.plot(*zip(*points, strict=True), **look, ms=4, markevery=every, label=label)
        else:
            rounds = sorted({r for points in curves.values() for r, _ in points})
            columns = [[e for p in curves.values() for r, e in p if r == at] for at in rounds]
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(rounds, low, high, color=COLOURS[0], alpha=0.25, linewidth=0)
            middle = [float(np.median(c)) for c in columns]
            axes.plot(rounds, middle, color=COLOURS[0], label=words["range"])
        if ceiling is not None:
            axes.axhline(ceiling, color=CEILING_COLOUR, linestyle="--", label=words["ceiling"])
        axes.set_ylim(bottom=0)
        axes.margins(y=0.12)
        axes.set_ylabel(words["epsilon"])
        _rounds_axis(axes, words["round"])
        clean(axes)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return finish(description)


def exposure_plot(
    models: Sequence[tuple[str, Sequence[float]]],
    maximum: float,
    expected: float,
    words: Mapping[str, str],
    description: str,
) -> Markup:
    """Plot each secret's exposure as a dot, a row for each model.

    Parameters
    ----------
    models : sequence of (str, sequence of float)
        Name of each model, and exposure in bits of every secret.
    maximum, expected : float
        Of a secret that ranks first, and the mean without memorisation.
    words : mapping
        Texts ``exposure``, ``maximum``, ``expected``.
    description : str
        For those who do not see the plot.
    """
    with svg_figure("exposure", 1.2 + 0.5 * len(models)) as (figure, finish):
        axes = figure.add_subplot()
        looks = styles(len(models))
        for row, (_, values) in enumerate(models):
            # Dots of equal exposure are fanned out, the same way each time.
            offsets = (np.arange(len(values)) * 0.618 % 1.0 - 0.5) * 0.45
            colour, marker = looks[row]["color"], looks[row]["marker"]
            axes.scatter(values, row + offsets, s=22, color=colour, marker=marker, alpha=0.75, lw=0)
        axes.axvline(maximum, color=CEILING_COLOUR, linestyle="--", label=words["maximum"])
        axes.axvline(expected, color="#999999", linestyle=":", label=words["expected"])
        axes.set_yticks(range(len(models)), [visible(name) for name, _ in models])
        axes.set_ylim(len(models) - 0.4, -0.6)
        axes.set_xlim(-0.3, maximum + 0.5)
        axes.set_xlabel(words["exposure"])
        clean(axes)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        return finish(description)


def promise_plot(
    runs: Sequence[tuple[str, tuple[float | None, float | None, float | None]]],
    words: Mapping[str, str],
    description: str,
) -> Markup:
    """Plot what was promised against what attacks showed, a row for each run.

    Parameters
    ----------
    runs : sequence of (str, (float or None, float or None, float or None))
        Name of each run, its claimed epsilon (none: unlimited), white-box and black-box lower
        bounds.
    words : mapping
        Texts ``axis``, ``claimed``, ``white``, ``black``, ``unlimited``.
    description : str
        For those who do not see the plot.
    """
    with svg_figure("promise", 1.4 + 0.6 * len(runs)) as (figure, finish):
        axes = figure.add_subplot()
        known = [value for _, values in runs for value in values if value is not None]
        reach = 1.15 * max([*known, 1.0])
        labelled: set[str] = set()

        def label(key: str) -> str | None:
            first = key not in labelled
            labelled.add(key)
            return words[key] if first else None

        for row, (_, (claimed, white, black)) in enumerate(runs):
            for value, key, colour, offset in (
                (white, "white", COLOURS[0], -0.14),
                (black, "black", COLOURS[4], 0.14),
            ):
                if value is not None:
                    axes.barh(row + offset, value, 0.24, color=colour, label=label(key))
                    axes.annotate(
                        f"{value:.2f}",
                        (value, row + offset),
                        xytext=(4, 0),
                        textcoords="offset points",
                        va="center",
                        fontsize=8.5,
                    )
            if claimed is None:
                axes.annotate(
                    f"{words['unlimited']} →",
                    (reach, row),
                    ha="right",
                    va="center",
                    color=COLOURS[1],
                )
            else:
                ends = (row - 0.34, row + 0.34)
                axes.plot(
                    (claimed, claimed), ends, color=COLOURS[1], lw=2.5, label=label("claimed")
                )
        axes.set_yticks(range(len(runs)), [visible(name) for name, _ in runs])
        axes.set_ylim(len(runs) - 0.45, -0.55)
        axes.set_xlim(0, reach)
        axes.set_xlabel(words["axis"])
        clean(axes)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return finish(description)


def roc_plot(
    curves: Sequence[tuple[str, tuple[Sequence[float], Sequence[float]]]],
    words: Mapping[str, str],
    description: str,
) -> Markup:
    """Plot receiver operating characteristics with logarithmic axes, where the danger shows.

    Parameters
    ----------
    curves : sequence of (str, (sequence of float, sequence of float))
        Name of each model, its false and its true positive rates.
    words : mapping
        Texts ``false``, ``true``, ``guessing``.
    description : str
        For those who do not see the plot.
    """
    with svg_figure("roc", 3.6) as (figure, finish):
        axes = figure.add_subplot()
        low = 1e-3
        for (name, (false, true)), look in zip(curves, styles(len(curves)), strict=True):
            # A step on a logarithmic axis begins at the axis, not at zero.
            axes.plot(
                np.maximum(false, low / 2),
                np.maximum(true, low / 2),
                drawstyle="steps-post",
                **look,
                ms=4,
                markevery=0.12,
                label=visible(name),
            )
        axes.plot((low, 1), (low, 1), color="#999999", linestyle=":", label=words["guessing"])
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(low, 1)
        axes.set_ylim(low, 1)
        ticks = (0.001, 0.01, 0.1, 1.0)
        axes.set_xticks(ticks, ["0.1%", "1%", "10%", "100%"])
        axes.set_yticks(ticks, ["0.1%", "1%", "10%", "100%"])
        axes.set_xlabel(words["false"])
        axes.set_ylabel(words["true"])
        clean(axes)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
        return finish(description)
