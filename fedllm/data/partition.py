"""Deal records out to simulated sites."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.config import DataSection
from fedllm.data.records import Record
from fedllm.errors import DataError
from fedllm.randomness import RandomStream

_REDRAWS = 200
_NAME_LENGTH, _TITLE_LENGTH = 64, 100


def split_into_sites(
    records: Sequence[Record], data: DataSection, seed: int
) -> dict[str, list[Record]]:
    """Split records into sites: by ``data.site``, evenly, or by Dirichlet over labels.

    What is dealt out is a person with all records when ``data.unit`` is set, else a record.
    "iid" gives each site as many as any other, within one. "dirichlet" cuts each label's
    share by proportions drawn from Dirichlet(``data.alpha``) over the sites (Hsu et al.
    2019; Li et al. 2022), and draws again until no site is empty; a person counts under
    the label that most of the person's records have.

    Parameters
    ----------
    records : sequence of Record
        Each record goes to exactly one site and keeps its place in the order.
    data : DataSection
        ``site``, ``unit``, ``partition``, ``alpha`` and ``sites``.
    seed : int
        The same seed and records give the same split.

    Returns
    -------
    dict of str to list of Record
        At least one record each, names in sorted order: "site-00" and so on, or the
        column's values made of ``A-Za-z0-9._-``.

    Raises
    ------
    DataError
        If there are too few records, no site assignment without an empty site was found,
        labels are missing, or a person has records at two natural sites.
    """
    if not records:
        raise DataError("there are no records to split into sites", "check data.train")
    if data.site is not None:
        return _natural(records, data.site)
    groups = _groups(records)
    if len(groups) < data.sites:
        noun = "records" if data.unit is None else "persons"
        raise DataError(
            f"{len(groups)} {noun} cannot fill data.sites = {data.sites} sites",
            "lower data.sites or give more records",
        )
    owner = (
        _deal_evenly(len(groups), data.sites, seed)
        if data.partition == "iid"
        else _deal_by_label(_labels(records, groups), data, seed)
    )
    return _collect(records, groups, owner, data.sites)


def _groups(records: Sequence[Record]) -> list[list[int]]:
    by_unit: dict[object, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_unit[index if record.unit is None else record.unit].append(index)
    return list(by_unit.values())


def _collect(
    records: Sequence[Record], groups: list[list[int]], owner: NDArray[np.int64], sites: int
) -> dict[str, list[Record]]:
    indices: list[list[int]] = [[] for _ in range(sites)]
    for group, site in zip(groups, owner, strict=True):
        indices[site].extend(group)
    width = max(2, len(str(sites - 1)))
    return {
        f"site-{site:0{width}d}": [records[i] for i in sorted(chosen)]
        for site, chosen in enumerate(indices)
    }


def _deal_evenly(count: int, sites: int, seed: int) -> NDArray[np.int64]:
    order = RandomStream.seeded(seed, "partition", "iid").permutation(count)
    owner = np.empty(count, dtype=np.int64)
    owner[order] = np.arange(count) % sites
    return owner


def _labels(records: Sequence[Record], groups: list[list[int]]) -> list[str]:
    if any("label" not in record.values for record in records):
        raise DataError(
            "data.partition = 'dirichlet' needs a label of each record, which this task has not",
            "set data.partition = 'iid', or data.site to a column that names sites",
        )
    result = []
    for group in groups:
        counts = Counter(records[i].values["label"] for i in group)
        result.append(min(counts, key=lambda label: (-counts[label], label)))
    return result


def _deal_by_label(labels: list[str], data: DataSection, seed: int) -> NDArray[np.int64]:
    codes = np.unique(labels, return_inverse=True)[1]
    members = [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]
    for attempt in range(_REDRAWS):
        words = RandomStream.seeded(seed, "partition", "dirichlet", attempt).uint64(4)
        generator = np.random.default_rng(words)
        owner = np.empty(len(labels), dtype=np.int64)
        for group in members:
            share = generator.dirichlet(np.full(data.sites, data.alpha))
            stops = np.rint(np.cumsum(share)[:-1] * len(group)).astype(np.int64)
            counts = np.diff(stops, prepend=0, append=len(group))
            owner[generator.permutation(group)] = np.repeat(np.arange(data.sites), counts)
        if len(np.unique(owner)) == data.sites:
            return owner
    raise DataError(
        f"Dirichlet({data.alpha}) left one of {data.sites} sites empty in {_REDRAWS} draws",
        "raise data.alpha or lower data.sites",
    )


def _natural(records: Sequence[Record], column: str) -> dict[str, list[Record]]:
    by_value: dict[str, list[Record]] = defaultdict(list)
    homes: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record.site is None:
            raise DataError(
                f"{record.origin} was read without the site column '{column}'",
                "set data.site before the records are read",
            )
        by_value[record.site].append(record)
        if record.unit is not None:
            homes[record.unit].add(record.site)
    shared = sum(len(sites) > 1 for sites in homes.values())
    if shared:
        # Each site accounts for its own training: such a person would lose epsilon twice.
        raise DataError(
            f"persons with records at more than one site of column '{column}': {shared}",
            "keep each person at one site, or leave out data.site and use data.partition",
        )
    normal = Counter(_normal(value) for value in by_value)
    twice = [value for value, count in normal.items() if count > 1]
    if twice:
        raise DataError(
            f"the site column '{column}' spells {len(twice)} names in two ways that look the same",
            "write it in one Unicode normal form (NFC)",
        )
    names = site_names(list(by_value))
    return {names[value]: by_value[value] for value in sorted(by_value, key=names.__getitem__)}


def site_names(values: Sequence[str]) -> dict[str, str]:
    """Give each distinct value a name of ``A-Za-z0-9._-`` that is safe as a file name.

    A name starts with a letter or digit and has at most 64 characters. Values whose names
    would be equal, in upper or lower case, or nothing at all, get a piece of their SHA-256
    behind it; so a name does not depend on the order of the values.

    Raises
    ------
    DataError
        If two names are equal all the same.
    """
    plain = {value: _plain_name(value) for value in values}
    counts = Counter(name.lower() for name in plain.values())
    names = {}
    for value, name in plain.items():
        if name and counts[name.lower()] == 1 and len(name) <= _NAME_LENGTH:
            names[value] = name
        else:
            digest = hashlib.sha256(value.encode()).hexdigest()[:12]
            names[value] = f"{name[: _NAME_LENGTH - 13] or 'site'}-{digest}"
    if len({name.lower() for name in names.values()}) < len(names):
        raise DataError("two sites have the same name", "rename one of them in the site column")
    return names


def site_titles(sites: Mapping[str, Sequence[Record]]) -> dict[str, str]:
    """Return natural sites' names as their column writes them, where the safe name is another.

    In Unicode's normal form C, and such that a terminal can show it.
    """
    titles = {}
    for name, records in sites.items():
        value = records[0].site if records else None
        title = "".join(c if c.isprintable() else " " for c in _normal(value or "")).strip()
        if title and title != name:
            titles[name] = title[:_TITLE_LENGTH]
    return titles


def _normal(value: str) -> str:
    return unicodedata.normalize("NFC", value)


def _plain_name(value: str) -> str:
    text = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
