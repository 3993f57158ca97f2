"""Who draws whom in large cohorts, and how small a sum a coalition can hope to open."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedllm.encryption.sparse import (
    COMPLETE,
    COMPLETE_TO,
    FAILURE_BITS,
    MaskGraph,
    drawn_neighbours,
    least_honest,
    log_choose,
    log_tail,
    plan_graph,
)
from fedllm.errors import ConfigError

# --- draws ----------------------------------------------------------------------------------------


@given(st.binary(min_size=32, max_size=32), st.integers(2, 60), st.data())
def test_a_site_draws_different_others(seed, sites, data):
    index = data.draw(st.integers(0, sites - 1))
    count = data.draw(st.integers(1, sites - 1))
    drawn = drawn_neighbours(seed, "statement", index, sites, count)
    assert list(drawn) == sorted(set(drawn))
    assert len(drawn) == count
    assert set(drawn) <= set(range(sites)) - {index}
    assert drawn == drawn_neighbours(seed, "statement", index, sites, count)


def test_all_that_a_draw_is_of_counts():
    right = (bytes(32), "statement", 3, 1000, 20)
    others = [(bytes(31) + b"\1", *right[1:]), (right[0], "another", *right[2:])]
    others += [(*right[:2], 4, *right[3:]), (*right[:3], 1001, 20)]
    assert len({drawn_neighbours(*one) for one in (right, *others)}) == 5
    # Not even the first ones are those of a larger draw.
    assert not set(drawn_neighbours(*right)) < set(drawn_neighbours(*right[:4], 21))


@pytest.mark.parametrize(("index", "sites", "count"), [(0, 6, 1), (2, 6, 2), (5, 6, 3), (1, 5, 4)])
def test_each_set_of_others_is_as_likely(index, sites, count):
    draws = 3000
    seeds = (number.to_bytes(32, "big") for number in range(draws))
    seen = Counter(drawn_neighbours(seed, "statement", index, sites, count) for seed in seeds)
    others = [other for other in range(sites) if other != index]
    sets = list(itertools.combinations(others, count))
    expected = draws / len(sets)
    distance = sum((seen[one] - expected) ** 2 / expected for one in sets)
    # The seeds are fixed; by chance one in a million would be above.
    freedom = max(len(sets) - 1, 1)
    assert distance <= freedom + 5 * math.sqrt(2 * freedom) + 25
    assert sum(seen.values()) == sum(seen[one] for one in sets)


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (6, 2), (0, 0), (0, 6)])
def test_impossible_draws_are_refused(index, count):
    with pytest.raises(ConfigError):
        drawn_neighbours(bytes(32), "statement", index, 6, count)


# --- bounds ---------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.data())
def test_the_tail_is_bounded_from_above_and_not_by_much(population, data):
    marked = data.draw(st.integers(0, population))
    draws = data.draw(st.integers(1, population))
    least = data.draw(st.integers(0, draws))
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, draws - x)
        for x in range(least, draws + 1)
    )
    exact = ways / math.comb(population, draws)
    bound = log_tail(population, marked, draws, least)
    assert bound <= 0
    if not ways:
        assert bound == -math.inf or least * population <= draws * marked
    else:
        assert bound >= math.log(exact) - 1e-9
    # Where it counts, far beyond the mean, it is no more than a few times too large.
    if ways and least >= 2 * draws * marked / population + 2:
        assert bound <= math.log(exact) + math.log(4)


@given(st.integers(0, 60), st.integers(-2, 62))
def test_binomial_coefficients(count, chosen):
    if 0 <= chosen <= count:
        assert log_choose(count, chosen) == pytest.approx(math.log(math.comb(count, chosen)))
    else:
        assert log_choose(count, chosen) == -math.inf


def log_expected(sites, graph, size):
    """Return the logarithm of how many closed sets of a size are expected, written out anew."""
    marked, least = graph.colluders + size - 1, graph.neighbours - graph.missing
    ways = sum(
        math.comb(marked, x) * math.comb(sites - 1 - marked, graph.neighbours - x)
        for x in range(least, graph.neighbours + 1)
    )
    if not ways:
        return -math.inf
    each = math.log(ways) - math.log(math.comb(sites - 1, graph.neighbours))
    return math.log(math.comb(sites - graph.colluders, size)) + size * each


def bound(sites, graph, size):
    """Return the bound on a closed set of so many honest sites or fewer."""
    each = (log_expected(sites, graph, one) for one in range(1, size + 1))
    return sum(math.exp(min(one, 0.0)) for one in each)


@pytest.mark.parametrize(
    "numbers", [(300, 19, 5, 15), (300, 18, 5, 15), (1000, 68, 22, 200), (1000, 39, 18, 50)]
)
def test_least_honest_is_where_the_bound_is_reached(numbers):
    sites, *graph = numbers
    graph = MaskGraph(*graph)
    found, exact, total = least_honest(sites, graph), 0, 0.0
    while total <= 2.0**-FAILURE_BITS:
        exact += 1
        total += math.exp(min(log_expected(sites, graph, exact), 0.0))
    # The closed form of the tail is never below the tail, and costs a few sites in a hundred.
    assert 0.95 * exact <= found <= exact


def smallest_closed_set(drawn, colluders, missing, largest):
    """Return the size of the smallest set that may be opened, by looking at all of them."""
    honest = [place for place in range(len(drawn)) if place not in colluders]
    asked = [sum(1 << other for other in some) for some in drawn]
    least = len(drawn[0]) - missing
    base = sum(1 << place for place in colluders)
    for size in range(1, largest + 1):
        for chosen in itertools.combinations(honest, size):
            inside = base | sum(1 << place for place in chosen)
            if all((asked[place] & inside).bit_count() >= least for place in chosen):
                return size
    return largest + 1


@pytest.mark.parametrize(
    ("sites", "neighbours", "missing", "colluders"),
    [
        (12, 4, 0, 2),
        (12, 4, 1, 2),
        (14, 5, 1, 3),
        (16, 4, 0, 3),
        pytest.param(20, 6, 1, 3, marks=pytest.mark.slow),
    ],
)
def test_closed_sets_are_no_more_frequent_than_the_bound(sites, neighbours, missing, colluders):
    """Counted over graphs drawn at random, all sets of up to four sites looked at."""
    graph, runs, largest = MaskGraph(neighbours, missing, colluders), 300, 4
    chance = random.Random(f"{sites} {graph}")
    league = set(range(sites - colluders, sites))
    smallest = Counter()
    for _ in range(runs):
        seeds = [chance.randbytes(32) for _ in range(sites)]
        drawn = [
            drawn_neighbours(seed, "statement", place, sites, neighbours)
            for place, seed in enumerate(seeds)
        ]
        smallest[smallest_closed_set(drawn, league, missing, largest)] += 1
    told = 0
    for size in range(1, largest + 1):
        seen = sum(smallest[one] for one in range(1, size + 1)) / runs
        most = min(bound(sites, graph, size), 1.0)
        assert seen <= most + 5 * math.sqrt(most * (1 - most) / runs) + 5 / runs
        told += 0 < most < 0.9
    assert told, "each bound says nothing"


def test_a_bound_that_forgets_something_is_below_what_is_counted():
    """The count sees a missing neighbour, a colluder and the other members of a set."""
    chance, sites, runs = random.Random(1), 12, 300
    smallest = Counter()
    for _ in range(runs):
        drawn = [
            drawn_neighbours(chance.randbytes(32), "statement", place, sites, 4)
            for place in range(sites)
        ]
        smallest[smallest_closed_set(drawn, {10, 11}, 1, 2)] += 1
    seen = (smallest[1] + smallest[2]) / runs
    for graph in (MaskGraph(4, 0, 2), MaskGraph(4, 1, 1)):
        assert seen > 2 * bound(sites, graph, 2)


# --- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [2, COMPLETE_TO])
def test_small_cohorts_share_all_masks(sites):
    assert plan_graph(sites, ((0, 2),), 0) == COMPLETE


@pytest.mark.parametrize("sites", [COMPLETE_TO + 100, 1000, 4096, 16384])
@pytest.mark.parametrize("share", [0.05, 0.2])
def test_a_plan_keeps_what_is_demanded_with_the_fewest_neighbours(sites, share):
    demands, lost = ((int(share * sites), sites // 4), (3, 10)), sites // 20
    graph = plan_graph(sites, demands, lost)
    if graph.complete:
        assert sites < 1000
        return
    for against, honest in demands:
        numbers = MaskGraph(graph.neighbours, graph.missing, against)
        assert least_honest(sites, numbers) >= honest
    assert graph.colluders == demands[0][0]
    assert graph.neighbours < sites / 4
    # With one fewer, one of the demands is not kept, or a cohort is lost too often.
    fewer = MaskGraph(graph.neighbours - 1, graph.missing, graph.colluders)
    kept = least_honest(sites, fewer) >= demands[0][1]
    tail = math.log(sites) + log_tail(sites - 1, lost, fewer.neighbours, fewer.missing)
    assert not (kept and tail <= -40 * math.log(2))


@given(st.integers(COMPLETE_TO + 1, 3000), st.data())
def test_more_colluders_and_more_missing_never_help(sites, data):
    neighbours = data.draw(st.integers(20, sites // 4))
    missing = data.draw(st.integers(0, neighbours - 1))
    colluders = data.draw(st.integers(0, sites // 2))
    found = least_honest(sites, MaskGraph(neighbours, missing, colluders))
    assert 1 <= found <= sites - colluders
    assert least_honest(sites, MaskGraph(neighbours, missing + 1, colluders)) <= found
    assert least_honest(sites, MaskGraph(neighbours, missing, colluders + 1)) <= found


@pytest.mark.parametrize(("sites", "colluders"), [(5, 0), (5, 3), (5, 5), (5, 6)])
def test_all_masks_guarantee_all_honest_sites(sites, colluders):
    assert least_honest(sites, MaskGraph(0, 0, colluders)) == max(sites - colluders, 0)


@pytest.mark.parametrize("numbers", [(2, 3, 0), (-1, 0, 0), (2, -1, 0), (2, 0, -1)])
def test_impossible_graphs_are_refused(numbers):
    with pytest.raises(ConfigError):
        MaskGraph(*numbers)
