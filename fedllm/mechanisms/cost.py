"""What a release does to a unit, in the eyes of two kinds of observers."""

from __future__ import annotations

from dataclasses import dataclass

from fedllm.config import RunConfig
from fedllm.privacy.accounting.events import Event


@dataclass(frozen=True)
class Cost:
    """What one round does to a unit, in the ledger's vocabulary.

    Attributes
    ----------
    events : tuple of Event
        In the eyes of those who see opened sums.
    alone : tuple of Event, optional
        In the eyes of everyone else colluding, who know all noise but the site's own; None
        where it is the same.
    """

    events: tuple[Event, ...]
    alone: tuple[Event, ...] | None = None


def noise_shares(config: RunConfig) -> int:
    """Return how many sites' shares make up the whole noise of a sum; 1 with local noise.

    The smallest sum that may be opened holds so many that nobody who colludes knows.
    """
    if config.privacy.noise == "local":
        return 1
    return config.rounds.min_sites - config.privacy.colluders
