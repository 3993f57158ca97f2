"""What integer noise costs against continuous noise of the same privacy: size, epsilon, time.

For ten sites that train a head of 29,645 values with expected batches of 398 records, as in
examples/bank_intents: the noise that is drawn against the continuous Gaussian's, both epsilons,
and the CPU time of one site's draw, in turn with two peers: our own continuous noise, which
adds four normals of a cryptographic generator, and NumPy's normal numbers, which no
cryptographic generator makes.

    python benchmarks/discrete_noise.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import numpy as np

from fedllm.config import load_run_config
from fedllm.errors import ConfigError
from fedllm.mechanisms import mechanism_of
from fedllm.mechanisms.discrete import DiscreteSharedNoise
from fedllm.privacy.accounting.accountants import epsilon
from fedllm.privacy.accounting.events import PoissonDiscreteGaussian, PoissonGaussian
from fedllm.privacy.discrete import discrete_gaussian
from fedllm.randomness import RandomStream

EXAMPLE = Path(__file__).parents[1] / "examples" / "bank_intents" / "run.toml"
LENGTH = 29_645


def cpu_s(works: list[Callable[[], object]], turns: int) -> list[list[float]]:
    """Return the CPU times of each work, called in turn; the first turn does not count."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(turns + 1):
        for work, seconds in zip(works, times, strict=True):
            started = time.process_time()
            work()
            if turn:
                seconds.append(time.process_time() - started)
    return times


def main() -> None:
    """Print one line for each epsilon and number of bits, and the time of a draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one epsilon, few draws")
    options = parser.parse_args()
    print("epsilon  bits  clipping norm   noise drawn   epsilon of 100 steps       difference")
    print("               in grid steps   / continuous  discrete    continuous")
    for target in (8,) if options.quick else (8, 3, 1):
        for bits in (20,) if options.quick else (16, 20, 24):
            overrides = [
                f"privacy.epsilon={target}",
                'privacy.noise="distributed"',
                'privacy.distribution="discrete_gaussian"',
                f"encryption.bits={bits}",
            ]
            config = load_run_config(EXAMPLE, overrides)
            noise = mechanism_of(config).announced_noise(1, ()) or 0.0
            rate, steps = config.training.sampling_rate or 1.0, config.rounds.count
            try:
                grid = DiscreteSharedNoise(config).grid(LENGTH)
            except ConfigError as error:
                print(f"{target:<8} {bits:<5} refused: {error.message}")
                continue
            share = grid.share(noise)
            event = PoissonDiscreteGaussian(
                rate, noise, steps, grid.shares, share, grid.clipping_steps, LENGTH
            )
            delta = config.privacy.delta
            discrete = epsilon([event], delta).value
            continuous = epsilon([PoissonGaussian(rate, noise, steps)], delta).value
            drawn = share * sqrt(grid.shares) / grid.clipping_steps
            print(
                f"{target:<8} {bits:<5} {grid.clipping_steps:<15.0f} {drawn / noise:<13.4f} "
                f"{discrete:<11.6f} {continuous:<14.6f} {discrete - continuous:.1e}"
            )
    stream = RandomStream.secure()
    numpy_random = np.random.default_rng()
    exact, own, plain = cpu_s(
        [
            lambda: discrete_gaussian(stream, LENGTH, 5000),
            lambda: stream.normal(LENGTH),
            lambda: numpy_random.standard_normal(LENGTH),
        ],
        3 if options.quick else 21,
    )

    def ratio(peer: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(exact, peer, strict=True))

    print(
        f"\none draw of {LENGTH} values: {1000 * statistics.median(exact):.1f} ms of CPU, "
        f"{ratio(own):.1f} times our own continuous noise, {ratio(plain):.0f} times NumPy's normals"
    )


if __name__ == "__main__":
    main()
