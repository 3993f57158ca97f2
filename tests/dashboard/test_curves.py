"""Curves: what is drawn, what is said of it, and what a strict policy would forbid."""

from __future__ import annotations

import re
from math import inf, nan

from fedllm.dashboard.curves import MOST_SERIES, Series, bar, chart
from fedllm.privacy.accounting.words import epsilon_text


def drawn(*series, **more):
    found = chart("a", "loss", [Series(name, points) for name, points in series], **more)
    assert found is not None
    return found


def heights(svg):
    return [
        [float(point.split(",")[1]) for point in line.split()]
        for line in re.findall(r'<polyline [^>]*points="([^"]*)"', svg)
    ]


def test_a_curve_falls_where_its_figures_do_and_its_words_say_so():
    found = drawn(("public", [(0, 3.0), (1, 2.0), (2, 2.5)]))
    ((first, second, third),) = heights(found.svg)
    # Downwards is more in a drawing.
    assert first < third < second
    assert "3 at 0, 2.5 at 2; between 2 and 3" in found.svg
    assert found.rows == (("0", "3"), ("1", "2"), ("2", "2.5"))


def test_what_is_not_finite_is_left_out_and_nothing_is_no_chart():
    assert drawn(("a", [(0, nan), (1, 1.0), (2, inf)])).rows == (("1", "1"),)
    assert chart("a", "loss", [Series("a", [(0, nan)])]) is None
    assert chart("a", "loss", []) is None


def test_figures_that_are_all_alike_and_alone_are_drawn_too():
    for points in ([(0, 0.0)], [(3, 5.0), (4, 5.0)], [(0, -1.0)], [(0, 1e-9), (1, 1e9)]):
        assert "nan" not in drawn(("a", points)).svg


def test_series_are_told_apart_without_colour():
    many = [(str(number), [(0, number), (1, number)]) for number in range(MOST_SERIES)]
    svg = drawn(*many).svg
    looks = re.findall(r'<polyline class="line s\d"[^>]*?points="[^"]*"([^>]*)>', svg)
    assert len(set(looks)) == MOST_SERIES
    assert len({name for name, _ in drawn(*many).legend}) == MOST_SERIES


def test_an_epsilon_is_never_rounded_down():
    found = drawn(("spent", [(0, 7.99911)]), limit=("promised", 8.00001), text=epsilon_text)
    assert found.rows[0][1] == "8"
    assert "promised: 8.001" in found.svg


def test_names_are_text_and_nothing_has_a_style_of_its_own():
    found = drawn(("<b>\u202e&", [(0, 1.0), (1, 2.0)]), limit=("<i>", 1.5))
    text = found.svg + bar(0.4) + "".join(sample for _, sample in found.legend)
    assert "<b>" not in text
    assert "\u202e" not in text
    assert "style=" not in text


def test_the_last_figures_of_curves_that_end_together_do_not_cover_one_another():
    found = drawn(("a", [(0, 1.0), (1, 2.0)]), ("b", [(0, 0.0), (1, 2.001)]))
    places = [float(y) for y in re.findall(r'<text class="value" x="[^"]*" y="([^"]*)"', found.svg)]
    assert len(places) == 2
    assert abs(places[0] - places[1]) >= 12


def test_a_thousand_rounds_stay_a_small_drawing():
    points = [(number, 1.0 / (number + 1)) for number in range(5000)]
    found = drawn(("a", points))
    assert len(found.svg) < 20_000
    assert len(found.rows) == 5000
