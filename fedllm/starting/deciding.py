"""From a look at somebody's records to the files that a first run needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from fedllm.config import RunConfig, SitePolicy
from fedllm.config.task import pools_text
from fedllm.errors import ConfigError
from fedllm.files import given_path, write_bytes
from fedllm.starting.checking import check_there, check_usable, labels_of
from fedllm.starting.guessing import Guess, unit_of
from fedllm.starting.looking import LOOKED_ROWS, Sample, Source, look
from fedllm.starting.profiles import Profile, listed
from fedllm.starting.settings import (
    Size,
    delta_for,
    installed_model,
    model_sections,
    settings_for,
    sites_for,
)
from fedllm.starting.splitting import split
from fedllm.starting.wanting import Wanted, splits
from fedllm.starting.writing import (
    DATABASE_VARIABLE,
    Places,
    for_file,
    has_password,
    place,
    run_name,
    run_toml,
    site_toml,
)
from fedllm.visible import quoted

_EPSILON = 8.0


class Kept(Protocol):
    """A prediction of `fedllm.commands.plan_quality`."""

    @property
    def kept(self) -> float:
        """Share of the gain."""


Reckoning = Callable[[float, float, int, int], Mapping[int, Kept]]


@dataclass(frozen=True, slots=True)
class Decided:
    """What was written, and what is in it."""

    guess: Guess
    size: Size
    rows: int
    test_records: int
    labels: tuple[str, ...]
    epsilon: float
    delta: float
    model: str
    kept: float | None
    notes: tuple[str, ...]
    written: tuple[Path, ...]


def decide(
    wanted: Wanted,
    sample: Sample,
    profiles: Mapping[str, Profile],
    found: Guess,
    reckon: Reckoning,
) -> Decided:
    """Check, put records aside, reckon, and write.

    Parameters
    ----------
    reckon : callable
        Predicts runs of epsilon, delta, sites and records a site, by number of rounds.

    Raises
    ------
    DataError
        If no run can be made of the records.
    ConfigError
        If what was asked for does not fit together.
    StorageError
        If it cannot be written.
    """
    notes = [*found.doubts, *check_usable(found, sample, profiles)]
    model = wanted.model or installed_model()
    # Before anything is written.
    model_sections(found, model)
    if not sample.whole:
        about = "about " if sample.about else ""
        notes.append(
            f"columns were guessed from the first {LOOKED_ROWS:,} of {about}{sample.count:,} rows"
        )
    epsilon = wanted.epsilon if wanted.epsilon is not None else _EPSILON
    if wanted.for_site:
        return _write_site(wanted, sample, found, epsilon, model, notes)
    counted = _counted(sample, found, wanted)
    if not splits(wanted):
        labels = tuple(sorted({*_labels(found, sample.rows), *_labels_of_test(wanted, found)}))
        drawn = _Drawn(_places(wanted, sample, model, notes), counted, labels, sample.whole)
        return _write_run(wanted, sample, profiles, found, drawn, epsilon, model, notes, reckon)
    with given_path():
        parts = split(sample, found, *wanted.parts)
    try:
        counted = replace(
            counted,
            records=parts.records[0],
            units=parts.units or parts.records[0],
            sites=parts.sites or counted.sites,
        )
        places = Places(place(model, wanted.out.parent), parts.train.name, parts.test.name)
        labels = tuple(sorted(parts.labels)) or _labels(found, sample.rows)
        drawn = _Drawn(places, counted, labels, True, parts.records[1], (parts.train, parts.test))
        return _write_run(wanted, sample, profiles, found, drawn, epsilon, model, notes, reckon)
    except BaseException:
        for path in (parts.train, parts.test):
            path.unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What a run is made from: places, numbers, and the labels that were seen."""

    places: Places
    size: Size
    labels: tuple[str, ...]
    all_labels: bool
    test_records: int = 0
    written: tuple[Path, ...] = ()


def _write_run(
    wanted: Wanted,
    sample: Sample,
    profiles: Mapping[str, Profile],
    found: Guess,
    drawn: _Drawn,
    epsilon: float,
    model: str,
    notes: list[str],
    reckon: Reckoning,
) -> Decided:
    counted, labels = drawn.size, drawn.labels
    delta = delta_for(counted.units)
    kept = (
        {
            rounds: one.kept
            for rounds, one in reckon(epsilon, delta, counted.sites, counted.units_a_site).items()
        }
        if pools_text(found.task)
        else {}
    )
    settings = settings_for(found, counted, epsilon, delta, profiles, labels, model, kept)
    text = run_toml(
        wanted.name or run_name(Path(wanted.location).name.partition(".")[0]),
        found,
        drawn.places,
        counted,
        (epsilon, delta),
        settings,
        labels,
        f"{sample.source.called}: {'about ' if sample.about else ''}{sample.count:,} rows",
        drawn.all_labels,
    )
    _write(wanted, for_file(text, wanted.out, RunConfig))
    return Decided(
        found,
        counted,
        sample.count,
        drawn.test_records,
        labels,
        epsilon,
        delta,
        model,
        settings.kept,
        (*notes, *settings.notes),
        (wanted.out, *drawn.written),
    )


def _write(wanted: Wanted, text: str) -> None:
    with given_path():
        write_bytes(wanted.out, text.encode())


def _write_site(
    wanted: Wanted,
    sample: Sample,
    found: Guess,
    epsilon: float,
    model: str,
    notes: list[str],
) -> Decided:
    places = _places(wanted, sample, model, notes)
    counted = _counted(sample, found, wanted)
    delta = delta_for(counted.units)
    text = site_toml(found, places, counted, epsilon, delta, sample.source.called)
    _write(wanted, for_file(text, wanted.out, SitePolicy))
    return Decided(
        replace(found, site=None),
        counted,
        sample.count,
        0,
        (),
        epsilon,
        delta,
        model,
        None,
        tuple(notes),
        (wanted.out,),
    )


def _labels(found: Guess, rows: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    if "label" not in found.columns:
        return _labels_of_spans(found, rows)
    return tuple(sorted(labels_of(found.columns["label"], rows)))


def _labels_of_test(wanted: Wanted, found: Guess) -> tuple[str, ...]:
    """Return the labels of a public test file, once it has the columns of the records."""
    if wanted.test is None:
        return ()
    sample = look(Source(str(wanted.test)))
    check_there(found.columns, sample)
    return _labels(found, sample.rows)


def _labels_of_spans(found: Guess, rows: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    if "spans" not in found.columns:
        return ()
    spans = (one for row in rows for one in listed(row.get(found.columns["spans"])))
    return tuple(sorted({str(one["label"]) for one in spans if isinstance(one, dict)}))


def _counted(sample: Sample, found: Guess, wanted: Wanted) -> Size:
    """Return the numbers of all records, those of what was looked at in proportion."""
    share = sample.count / len(sample.rows)
    keys = {key for row in sample.rows if (key := unit_of(row, found)) is not None}
    units = max(1, min(sample.count, round(len(keys) * share))) if keys else sample.count
    if not found.site:
        sites = wanted.sites or sites_for(units)
        if units < 2 * sites:
            raise ConfigError(
                f"{units} records or persons are too few for {sites} sites", "lower --sites"
            )
        return Size(sample.count, units, sites, units // sites, natural=False)
    at_site: dict[str, set[object]] = {}
    for number, row in enumerate(sample.rows):
        key = unit_of(row, found)
        at_site.setdefault(str(row.get(found.site)).strip(), set()).add(
            number if key is None else key
        )
    largest = round(max(map(len, at_site.values())) * share)
    if len(at_site) < 2:
        raise ConfigError(
            f"column {quoted(found.site)} names one site",
            "give --split-by another column, or --sites",
        )
    return Size(sample.count, units, len(at_site), largest, natural=True)


def _places(wanted: Wanted, sample: Sample, model: str, notes: list[str]) -> Places:
    folder = wanted.out.parent
    train = place(wanted.data, folder)
    if wanted.data.startswith("sqlite:") and "${" not in wanted.data:
        # A relative one would count from the folder of the file that is written.
        train = wanted.location
    if has_password(wanted.data):
        train = "${" + DATABASE_VARIABLE + "}"
        notes.append(
            f"the URL holds a password, which was not written down: set {DATABASE_VARIABLE} to it "
            "in the environment"
        )
    test = None if wanted.test is None else place(str(wanted.test), folder)
    return Places(place(model, folder), train, test, sample.source.query)
