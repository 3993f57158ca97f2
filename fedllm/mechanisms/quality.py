"""How much of what training gains a private run keeps: a law of its noise, fitted on public runs.

`benchmarks/quality.py` makes the runs, fits, and writes ``quality.json`` beside this file with what
it was made of and how far off it was on runs that it had not seen.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path

from fedllm.config import RunConfig

DATA = Path(__file__).with_name("quality.json")
# Of an interval that holds nineteen of twenty, in root mean square errors.
_WIDTH = 2.0


@dataclass(frozen=True)
class Law:
    """The lost share of the gain, as it follows from the noise.

    Attributes
    ----------
    half : float
        Noise at which half of the gain is lost; see `noise_of`.
    power : float
        How fast it is lost there.
    error : float
        Root mean square error of the lost share, on runs that the law was not fitted on.
    runs : int
        On how many it was fitted.
    task : str
        What these trained for.
    source : str
        What they were.
    start : float
        Their metric (accuracy) before training.
    best : tuple of (float, float)
        Numbers of records, ascending, and the metric without privacy on as many.
    """

    half: float
    power: float
    error: float
    runs: int
    task: str
    source: str
    start: float = 0.0
    best: tuple[tuple[float, float], ...] = ()

    def metric(self, kept: float, records: float) -> float:
        """Return what a share of the gain would be on the runs' own data set.

        Beyond the numbers of records that were run, the gain is that of the nearest.

        Parameters
        ----------
        kept : float
            Share of the gain.
        records : float
            Of all sites together.
        """
        import numpy as np

        counts, metrics = zip(*self.best, strict=True)
        best = float(np.interp(np.log(records), np.log(counts), metrics))
        return self.start + kept * (best - self.start)

    def lost(self, noise: float) -> float:
        """Return the share of the gain that is lost, from 0 to 1."""
        return 0.0 if noise <= 0 else 1.0 / (1.0 + (self.half / noise) ** self.power)

    def kept(self, noise: float) -> tuple[float, float, float]:
        """Return the share that is kept, and the interval that holds it in about 19 of 20 runs."""
        share = 1.0 - self.lost(noise)
        width = _WIDTH * self.error
        return share, max(0.0, share - width), min(1.0, share + width)


@lru_cache(maxsize=1)
def fitted_law() -> Law:
    """Return the law that the package carries."""
    values = json.loads(DATA.read_text())
    names = ("half", "power", "error", "runs", "task", "source", "start")
    found = {name: values[name] for name in names}
    best = tuple((float(count), metric) for count, metric in values["best"].items())
    return Law(**found, best=best)


def noise_of(
    config: RunConfig, noise_multiplier: float, sampling_rate: float, records: int, sites: int
) -> float:
    """Return the noise of a whole run over its signal.

    A step's sum has noise of ``noise_multiplier`` clipping norms, and as many records as are
    sampled at all sites together. Over the rounds signal adds up, and of noise the root of the
    number of rounds. Where every site adds the whole noise by itself, there is more by the root of
    the number of sites; with shares, by what the shares of all are more than those of the smallest
    sum.

    Parameters
    ----------
    config : RunConfig
        The run; one gradient a round, as the law's runs.
    noise_multiplier, sampling_rate : float
        Of each step.
    records : int
        At each site.
    sites : int
        That take part.
    """
    from fedllm.mechanisms.choice import mechanism_of

    steps = config.rounds.count * mechanism_of(config).releases_per_round
    extra = sites / mechanism_of(config).shares
    return (
        noise_multiplier * sqrt(max(extra, 1.0)) / (sampling_rate * records * sites * sqrt(steps))
    )
