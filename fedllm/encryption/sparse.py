"""Who shares a mask with whom in a large cohort, and what that still guarantees.

In a cohort of n sites each site draws k others, and shares masks with those that it drew and
with those that drew it, after Bell, Bonawitz, Gascón, Lepoint and Raykova 2020, "Secure
single-server aggregation with (poly)logarithmic overhead". A site draws with a secret of its
own, from the digest of the signed statement: nobody else chooses its neighbours, and it cannot
choose them before the cohort is fixed. ``docs/protocol.md`` has the argument.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from fedllm.canonical import sha256, signing_bytes
from fedllm.errors import ConfigError
from fedllm.randomness import RandomStream

# Each attempt draws anew; 2**-50 for one is 2**-40 for a thousand.
FAILURE_BITS = 50
# Below it, all masks cost less than another exchange.
COMPLETE_TO = 200
# How seldom a cohort that loses no more sites than planned has to repeat an attempt.
_REPEAT_BITS = 40


@dataclass(frozen=True)
class MaskGraph:
    """How many neighbours a site draws, and how many of them may be missing from a sum.

    Attributes
    ----------
    neighbours : int
        Others that each site draws, k; 0 if every two sites of the cohort share a mask.
    missing : int
        Of the neighbours that a site drew, most that may be outside a sum that it helps to
        open.
    colluders : int
        Sites of the cohort that may be in league with coordinator and key authority.
    """

    neighbours: int = 0
    missing: int = 0
    colluders: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.missing <= self.neighbours or self.colluders < 0:
            raise ConfigError("a graph of masks has impossible numbers")

    @property
    def complete(self) -> bool:
        """Whether every two sites share a mask."""
        return self.neighbours == 0


COMPLETE = MaskGraph()


def is_large(sites: int) -> bool:
    """Return whether a cohort is so large that sites need not share masks with all others."""
    return sites > COMPLETE_TO


@lru_cache(maxsize=64)
def plan_graph(sites: int, demands: tuple[tuple[int, int], ...], lost: int) -> MaskGraph:
    """Choose the fewest neighbours that keep what is demanded.

    Parameters
    ----------
    sites : int
        Size of the cohort, n.
    demands : tuple of (int, int)
        Against so many colluders, at least so many honest sites in each sum whose masks come
        off. The first is what the graph says of itself.
    lost : int
        Sites that may be missing at random without costing the attempt.

    Returns
    -------
    MaskGraph
        The complete graph for small cohorts, and where no graph of half as many masks would do.
    """
    colluders = demands[0][0]
    for neighbours in range(1, sites // 4 if is_large(sites) else 0):
        missing = _most_missing(sites, neighbours, lost)
        if all(
            least_honest(sites, MaskGraph(neighbours, missing, against)) >= honest
            for against, honest in demands
        ):
            return MaskGraph(neighbours, missing, colluders)
    return COMPLETE


@lru_cache(maxsize=256)
def least_honest(sites: int, graph: MaskGraph) -> int:
    """Return how many honest sites every sum holds that a coalition can open.

    Let A be a set of honest sites whose masks come off among themselves. Each of them drew k
    neighbours, of which at most `MaskGraph.missing` are outside its sum; all others are
    colluders or, having agreed to the same sum, in A. For one A of a sites that has at most the
    probability P(hypergeometric(n - 1, c + a - 1, k) >= k - missing) ** a, since sites draw
    independently; there are binomial(n - c, a) such sets.

    Returns
    -------
    int
        The smallest a at which the sum of these bounds over all smaller sets exceeds
        2**-`FAILURE_BITS`; 1 guarantees nothing.
    """
    honest = sites - graph.colluders
    if graph.complete or honest < 2:
        return max(honest, 0)
    limit, total = 2.0**-FAILURE_BITS, 0.0
    drawn = graph.neighbours - graph.missing
    for size in range(1, honest):
        inside = graph.colluders + size - 1
        exponent = log_choose(honest, size) + size * log_tail(
            sites - 1, inside, graph.neighbours, drawn
        )
        total += math.exp(min(exponent, 0.0))
        if total > limit:
            return size
    return honest


@lru_cache(maxsize=256)
def most_colluding(sites: int, graph: MaskGraph) -> int:
    """Return how many colluders any site has among the neighbours that it draws, at most.

    But for a probability of 2**-`FAILURE_BITS` for each attempt: hypergeometric, and one chance
    for each site.
    """
    limit = -FAILURE_BITS * math.log(2) - math.log(sites)
    return next(
        (
            count
            for count in range(graph.neighbours)
            if log_tail(sites - 1, graph.colluders, graph.neighbours, count + 1) <= limit
        ),
        graph.neighbours,
    )


def drawn_neighbours(
    seed: bytes, statement: str, index: int, sites: int, count: int
) -> tuple[int, ...]:
    """Return the neighbours that a site's seed draws from a cohort.

    Parameters
    ----------
    seed : bytes
        32 bytes, the site's own for this statement.
    statement : str
        Digest of the signed statement, with the cohort in it.
    index : int
        The site's place in the cohort, from 0.
    sites : int
        Size of the cohort.
    count : int
        How many to draw; fewer than half of the others.

    Returns
    -------
    tuple of int
        Different places in the cohort, none of them ``index``, ascending; each set equally
        likely.
    """
    if not 0 <= index < sites or not 0 < count < sites:
        raise ConfigError("a site draws at least one neighbour, and not more than there are")
    key = sha256(signing_bytes("fedllm.neighbours.v1", seed, statement, index, sites, count))
    stream, found = RandomStream(key), dict[int, None]()
    while len(found) < count:
        # Some stand there twice, so that a few more are drawn; the first of all count.
        more = count - len(found) + count // 8
        found.update(dict.fromkeys(stream.below(sites - 1, more).tolist()))
    return tuple(sorted(place + (place >= index) for place in islice(found, count)))


def log_choose(count: int, chosen: int) -> float:
    """Return the natural logarithm of a binomial coefficient; minus infinity where it is 0."""
    if not 0 <= chosen <= count:
        return -math.inf
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)


def log_tail(population: int, marked: int, draws: int, least: int) -> float:
    """Bound the logarithm of P(a hypergeometric number >= ``least``) from above.

    Parameters
    ----------
    population, marked, draws : int
        Draws without replacement from a population with so many marked.
    least : int
        Marked ones among the draws.
    """
    most = min(marked, draws)
    least = max(least, draws - (population - marked))
    if least > most:
        return -math.inf
    if least * population <= draws * marked:
        return 0.0
    first = (
        log_choose(marked, least)
        + log_choose(population - marked, draws - least)
        - log_choose(population, draws)
    )
    # Beyond the mean each term is smaller than the one before by at least this factor.
    left = (least + 1) * (population - marked - draws + least + 1)
    ratio = (marked - least) * (draws - least) / left
    return min(0.0, first - math.log1p(-ratio)) if ratio < 1 else 0.0


def _most_missing(sites: int, neighbours: int, lost: int) -> int:
    for missing in range(neighbours):
        tail = math.log(sites) + log_tail(sites - 1, lost, neighbours, missing + 1)
        if tail <= -_REPEAT_BITS * math.log(2):
            return missing
    return neighbours
