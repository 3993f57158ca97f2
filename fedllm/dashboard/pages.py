"""The pages as HTML, section by section: each is made once for all who watch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from fedllm.dashboard.curves import MOST_SERIES, Series, bar, chart
from fedllm.dashboard.drawings import charts_of
from fedllm.dashboard.following import Seen
from fedllm.dashboard.measures import best_of, measures_of, spent_by_site, spent_of
from fedllm.dashboard.sites import sites_of
from fedllm.dashboard.tables import (
    bytes_of,
    files_of,
    fingerprints_of,
    privacy_of,
    rounds_table,
    seconds_of,
    settings_rows,
    took,
)
from fedllm.dashboard.wording import name_of, what_of, words_of
from fedllm.identity.titles import shown
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.shelf import Compared, in_words, title_of
from fedllm.visible import visible

_ENVIRONMENT = Environment(
    loader=PackageLoader("fedllm.dashboard"), autoescape=True, undefined=StrictUndefined
)
_ENVIRONMENT.globals["bar"] = bar
_MOST_SITES, _MOST_RUNS = 500, 500
EVENTS = "/events"


@dataclass(frozen=True)
class Page:
    """A page without its frame.

    Attributes
    ----------
    title : str
        Of the browser's tab.
    sections : mapping of str to str
        HTML by the identifier of the section.
    revision : int
        Grows when a section changes.
    over : bool
        Whether nothing changes any more.
    said : str
        How it stands, for who hears the page instead of seeing it.
    """

    title: str
    sections: Mapping[str, str]
    revision: int = 0
    over: bool = False
    said: str = ""


def framed(page: Page, several: bool, events: str = "") -> bytes:
    """Return a whole page.

    Parameters
    ----------
    several : bool
        Whether there is a list of runs to go back to.
    events : str, optional
        Where its changes come from; empty where none come.
    """
    layout = _ENVIRONMENT.get_template("layout.html.j2")
    live = f"{events}&seen={page.revision}" if events and not page.over else ""
    sections = {name: _markup(html) for name, html in page.sections.items()}
    text = layout.render(title=page.title, sections=sections, live=live, several=several)
    return text.encode()


def events_of(run: str | None) -> str:
    """Return the address of the changes of a run's page, or of the list of runs."""
    return f"{EVENTS}?{urlencode({'run': run} if run is not None else {'all': '1'})}"


def run_sections(seen: Seen, key: str) -> dict[str, str]:
    """Return the sections of a run's page; ``key`` names the run in addresses."""
    made: Any = _ENVIRONMENT.get_template("run.html.j2").module
    sites = sites_of(seen)
    titles = {name: shown(name, seen.titles) for name in seen.heads.newest}
    return {
        "top": made.top(words_of(seen), seen.state),
        "problems": made.problems([visible(one) for one in seen.problems]),
        "curves": made.curves(charts_of(seen)),
        "sites": made.sites(
            [_seen_site(site) for site in sites[:_MOST_SITES]],
            max(0, len(sites) - _MOST_SITES),
            spent_by_site(seen),
            bool(seen.connected),
        ),
        "privacy": made.privacy(privacy_of(seen)),
        "cost": made.cost(seconds_of(seen), took(seen), bytes_of(seen)),
        "rounds": made.rounds(rounds_table(seen)),
        "signed": made.signed(seen.heads, titles, fingerprints_of(seen), settings_rows(seen)),
        "notes": made.notes([visible(note) for note in reversed(seen.notes)]),
        "files": made.downloads(files_of(seen), key),
    }


def _seen_site(site: Any) -> dict[str, Any]:
    told = {name: getattr(site, name) for name in ("name", "standing", "rounds", "left_out")}
    words = {"shown": visible(site.shown), "words": visible(site.words)}
    return told | words | {"connected": site.connected}


@dataclass(frozen=True)
class Row:
    """A run in the list: words for each cell, and the key that addresses name it by."""

    key: str
    name: str
    what: str
    state: str
    rounds: str
    quality: str
    epsilon: str
    begun: str
    comparable: bool


def row_of(key: str, seen: Seen) -> Row:
    """Say of a run what a list says."""
    best, spent = best_of(seen), spent_of(seen)
    started = seen.reports[0].started if seen.reports else ""
    private = seen.config is not None and seen.config.private
    unknown = "unknown" if private else "none"
    return Row(
        visible(key),
        name_of(seen),
        what_of(seen),
        seen.state,
        f"{seen.done} of {seen.total}" if seen.total else "",
        f"{best[0]} {best[1]:.4g}" if best else "",
        epsilon_text(spent) if spent is not None else unknown * (seen.kind == "run"),
        visible(started[:10]),
        seen.kind == "run" and seen.summary is not None,
    )


def shelf_sections(rows: Sequence[Row], folders: str) -> dict[str, str]:
    """Return the sections of the list of runs."""
    made: Any = _shelf().module
    hidden = max(0, len(rows) - _MOST_RUNS)
    return {"runs": made.list(rows[:_MOST_RUNS], visible(folders), hidden)}


def compared_sections(found: Compared, runs: Mapping[str, Seen]) -> dict[str, str]:
    """Return the page on which runs stand beside one another."""
    made: Any = _shelf().module
    names = [(name_of(seen), visible(key)) for key, seen in runs.items()]
    short = [f"{number} {name}" for number, (name, _) in enumerate(names, 1)]
    tables = [
        (title, ("what", *short), _cells(rows))
        for title, rows in (
            ("Quality beside privacy", _beside(found)),
            ("Settings that differ", found.settings),
            ("Quality on the public test file", found.metrics),
            ("Privacy", found.privacy),
            ("Cost", found.cost),
            ("Model", found.model),
        )
        if rows
    ]
    notes = [visible(note) for note in found.notes]
    return {"compared": made.compared(names, tables, _together(runs, short), notes)}


def wrong_sections(what: str, remedy: str) -> dict[str, str]:
    """Return the page that says what cannot be shown, and what to do."""
    made: Any = _shelf().module
    return {"wrong": made.wrong(visible(what), visible(remedy))}


def _beside(found: Compared) -> dict[str, tuple[Any, ...]]:
    quality = {
        name: found.metrics[name] for name in ("accuracy", "f1", "loss") if name in found.metrics
    }
    privacy = {name: found.privacy[name] for name in ("epsilon", "unit") if name in found.privacy}
    return quality | privacy


def _cells(rows: Mapping[str, Sequence[Any]]) -> list[tuple[str, ...]]:
    return [
        (visible(title_of(key)), *(visible(in_words(key, value)) for value in values))
        for key, values in rows.items()
    ]


def _together(runs: Mapping[str, Seen], short: Sequence[str]) -> list[Any]:
    measures = dict.fromkeys(name for seen in runs.values() for name in measures_of(seen.reports))
    found = []
    for number, name in enumerate(measures):
        series = [
            Series(label, _points(seen, name))
            for label, seen in zip(short, runs.values(), strict=True)
        ]
        found.append(chart(f"c{number}", name.replace("_", " "), series[:MOST_SERIES]))
    return [one for one in found if one is not None]


def _points(seen: Seen, name: str) -> list[tuple[float, float]]:
    told = [(report.round, (report.metrics or {}).get(name)) for report in seen.reports]
    return [(number, value) for number, value in told if value is not None]


def _shelf() -> Template:
    return _ENVIRONMENT.get_template("shelf.html.j2")


def _markup(html: str) -> Any:
    from markupsafe import Markup

    return Markup(html)  # noqa: S704 - made by the templates, which escape
