"""What is given up against what is gained, as inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from fedllm.audit.report.plots import clean, styles, svg_figure
from fedllm.visible import visible


def trade_plot(
    seed: str, points: Sequence[tuple[str, float, float]], across: str, up: str, description: str
) -> Markup:
    """Plot each model as a mark.

    Parameters
    ----------
    seed : str
        Of element names, which must differ within one page.
    points : sequence of (str, float, float)
        Name, what it takes, and how good it is; the original first, whose quality a line marks.
    across, up : str
        Words at the axes.
    description : str
        For those who do not see the plot.
    """
    with svg_figure(seed, 3.0 + 0.2 * (len(points) // 3)) as (figure, finish):
        axes = figure.add_subplot()
        axes.axhline(points[0][2], color="#999999", linestyle=":")
        for (name, x, y), look in zip(points, styles(len(points)), strict=True):
            colour, marker = look["color"], look["marker"]
            axes.plot([x], [y], color=colour, marker=marker, ms=7, ls="", label=visible(name))
        axes.set_xlim(left=0)
        axes.margins(x=0.08, y=0.15)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        clean(axes)
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
        return finish(description)
