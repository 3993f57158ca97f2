from __future__ import annotations

import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedllm.config import DataSection
from fedllm.data.partition import site_names, site_titles, split_into_sites
from fedllm.data.records import Record
from fedllm.errors import DataError


def section(**keys) -> DataSection:
    return DataSection(train="train.jsonl", **keys)


def labelled(count: int, labels: int = 4, persons: int | None = None) -> list[Record]:
    return [
        Record(
            {"text": f"t{i}", "label": f"l{i * 7 % labels}"},
            None if persons is None else f"p{i * i % persons}",
            None,
            f"a:{i}",
        )
        for i in range(count)
    ]


@given(
    count=st.integers(1, 120),
    persons=st.none() | st.integers(1, 40),
    sites=st.integers(1, 12),
    partition=st.sampled_from(["iid", "dirichlet"]),
    alpha=st.sampled_from([0.1, 0.5, 10.0]),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=120)
def test_split_is_complete_disjoint_whole_and_repeatable(
    count, persons, sites, partition, alpha, seed
):
    records = labelled(count, persons=persons)
    unit = None if persons is None else "person"
    data = section(sites=sites, partition=partition, alpha=alpha, unit=unit)
    try:
        split = split_into_sites(records, data, seed)
    except DataError as error:
        groups = len({r.unit or r.origin for r in records})
        assert groups < sites or "Dirichlet" in str(error)
        return
    assert list(split) == [f"site-{i:02d}" for i in range(sites)]
    assert all(split.values())
    assert sorted(r.origin for part in split.values() for r in part) == sorted(
        r.origin for r in records
    )
    for part in split.values():
        assert part == [r for r in records if r in part]
    if persons is not None:
        homes = Counter(unit for part in split.values() for unit in {r.unit for r in part})
        assert set(homes.values()) == {1}
    if partition == "iid":
        sizes = [len({r.unit or r.origin for r in part}) for part in split.values()]
        assert max(sizes) - min(sizes) <= 1
    assert split_into_sites(records, data, seed) == split


@pytest.mark.parametrize("partition", ["iid", "dirichlet"])
def test_another_seed_gives_another_split(partition):
    records, data = labelled(100), section(sites=4, partition=partition)
    assert split_into_sites(records, data, 1) != split_into_sites(records, data, 2)


def test_dirichlet_skews_labels_as_alpha_says():
    records = labelled(4000)

    def largest_share(alpha: float) -> float:
        data = section(sites=4, partition="dirichlet", alpha=alpha)
        shares = []
        for part in split_into_sites(records, data, 3).values():
            counts = Counter(r.values["label"] for r in part)
            shares.append(max(counts.values()) / len(part))
        return sum(shares) / len(shares)

    assert largest_share(1000.0) < 0.3
    assert largest_share(0.2) > 0.5


def test_dirichlet_share_has_the_mean_and_spread_of_the_distribution():
    # A share of Dirichlet(a, ..., a) over k sites: mean 1/k, variance (k-1) / (k^2 (ka + 1)).
    sites, alpha, labels, per_label = 5, 0.5, 300, 60
    records = labelled(labels * per_label, labels=labels)
    split = split_into_sites(records, section(sites=sites, partition="dirichlet", alpha=alpha), 0)
    counts = Counter(r.values["label"] for r in split["site-02"])
    shares = [counts[f"l{i}"] / per_label for i in range(labels)]
    mean = sum(shares) / labels
    variance = sum((s - mean) ** 2 for s in shares) / labels
    assert mean == pytest.approx(1 / sites, abs=0.04)
    assert variance == pytest.approx((sites - 1) / (sites**2 * (sites * alpha + 1)), rel=0.25)


def test_dirichlet_deals_a_label_in_random_order():
    split = split_into_sites(labelled(400, labels=1), section(sites=4, partition="dirichlet"), 0)
    for part in split.values():
        places = [int(r.origin.removeprefix("a:")) for r in part]
        if 20 <= len(part) <= 380:
            assert places[-1] - places[0] >= len(part)


def test_dirichlet_counts_a_person_under_the_commonest_label():
    # With one label for each person all but surely at one site, so are the persons.
    records = [
        Record({"text": "t", "label": "a" if visit == 0 else f"l{p % 2}"}, f"p{p}", None, "a:1")
        for p in range(40)
        for visit in range(3)
    ]
    data = section(sites=2, partition="dirichlet", alpha=0.01, unit="person")
    split = split_into_sites(records, data, 0)
    for part in split.values():
        assert len({r.values["label"] for r in part} - {"a"}) == 1


def test_dirichlet_draws_again_until_no_site_is_empty():
    data = section(sites=8, partition="dirichlet", alpha=0.3)
    for seed in range(10):
        assert all(split_into_sites(labelled(40), data, seed).values())


def test_impossible_splits_are_refused():
    records = labelled(10, persons=None)
    with pytest.raises(DataError, match="10 records cannot fill"):
        split_into_sites(records, section(sites=11), 0)
    with pytest.raises(DataError, match="2 persons cannot fill"):
        split_into_sites(labelled(10, persons=3), section(sites=4, unit="person"), 0)
    with pytest.raises(DataError, match="left one of 10 sites empty"):
        split_into_sites(records, section(sites=10, partition="dirichlet", alpha=0.01), 0)
    with pytest.raises(DataError, match="no records"):
        split_into_sites([], section(), 0)
    prompts = [Record({"prompt": "a", "response": "b"}, None, None, f"a:{i}") for i in range(9)]
    with pytest.raises(DataError, match="iid"):
        split_into_sites(prompts, section(sites=2, partition="dirichlet"), 0)


def natural(*pairs: tuple[str | None, str | None]) -> list[Record]:
    return [Record({"text": str(i)}, unit, site, f"a:{i}") for i, (unit, site) in enumerate(pairs)]


def test_natural_sites_come_from_the_column():
    records = natural((None, "St. Mary"), (None, "北京"), (None, "St. Mary"), (None, "CDC"))
    split = split_into_sites(records, section(site="hospital"), 0)
    assert list(split)[:2] == ["CDC", "St.-Mary"]
    assert [r.origin for r in split["St.-Mary"]] == ["a:0", "a:2"]
    assert len(split) == 3


def test_person_at_two_natural_sites_is_refused():
    records = natural(("Ann", "A"), ("Ann", "B"), ("Bob", "B"))
    with pytest.raises(DataError, match="more than one site of column 'hospital': 1") as caught:
        split_into_sites(records, section(site="hospital", unit="person"), 0)
    assert "Ann" not in str(caught.value)
    with pytest.raises(DataError, match="a:0 was read without the site column"):
        split_into_sites(natural((None, None)), section(site="hospital"), 0)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), unique=True))
def test_site_names_are_safe_unique_and_do_not_depend_on_order(values):
    names = site_names(values)
    assert list(names) == values
    assert len({name.lower() for name in names.values()}) == len(values)
    for name in names.values():
        assert 1 <= len(name) <= 64
        assert name[0].isalnum()
        assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    assert site_names(values[::-1]) == names


def test_site_names_of_values_that_meet():
    names = site_names(["Ward 1", "Ward/1", "ward-1", "..", "Köln", "CDC", "x" * 80])
    assert names["CDC"] == "CDC"
    assert names["Köln"] == "Koln"
    assert names[".."].startswith("site-")
    assert names["Ward 1"].startswith("Ward-1-")
    assert names["ward-1"] != "ward-1"
    assert len(names["x" * 80]) == 64


def at_sites(*values):
    return [
        Record({"text": f"t{i}", "label": "x"}, None, value, f"r:{i}")
        for i, value in enumerate(values)
    ]


def test_natural_sites_keep_the_names_that_people_gave_them():
    rows = at_sites("Südklinik", "北京医院", "CDC", unicodedata.normalize("NFD", "Klinik Öst"))
    sites = split_into_sites(rows, section(site="where"), 0)
    titles = site_titles(sites)
    assert titles["Sudklinik"] == "Südklinik"
    assert titles["Klinik-Ost"] == "Klinik Öst"
    assert "CDC" not in titles
    (other,) = set(titles) - {"Sudklinik", "Klinik-Ost"}
    assert titles[other] == "北京医院"
    assert other.startswith("site-")


def test_two_spellings_of_one_name_are_refused():
    rows = at_sites("Südklinik", unicodedata.normalize("NFD", "Südklinik"))
    with pytest.raises(DataError, match="spells 1 names in two ways that look the same"):
        split_into_sites(rows, section(site="where"), 0)


@pytest.mark.parametrize(
    ("count", "first", "last"),
    [
        (1, "site-00", "site-00"),
        (10, "site-00", "site-09"),
        (99, "site-00", "site-98"),
        (100, "site-00", "site-99"),
        (101, "site-000", "site-100"),
    ],
)
def test_simulated_names_sort_and_stay_unique(count, first, last):
    rows = [Record({"text": str(i), "label": "x"}, None, None, f"r:{i}") for i in range(count)]
    names = list(split_into_sites(rows, section(sites=count, partition="iid"), 0))
    assert (names[0], names[-1], len(set(names))) == (first, last, count)
    assert names == sorted(names)
