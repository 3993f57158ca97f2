"""What integer noise costs against continuous noise of the same privacy: size, epsilon, time.

For ten sites that train a head of 29,645 values with expected batches of 398 records, as in
examples/bank_intents: the noise that is drawn against the continuous Gaussian's, both epsilons,
and the CPU time of one site's draw.

    python benchmarks/discrete_noise.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from math import sqrt
from pathlib import Path

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


def cpu_s(work: Callable[[], object]) -> float:
    """Return the median CPU time of five calls."""
    times = []
    for _ in range(5):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return statistics.median(times)


def main() -> None:
    """Print one line for each epsilon and number of bits."""
    print("epsilon  bits  clipping norm   noise drawn   epsilon of 100 steps       difference")
    print("               in grid steps   / continuous  discrete    continuous")
    for target in (8, 3, 1):
        for bits in (16, 20, 24):
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
    exact = cpu_s(lambda: discrete_gaussian(stream, LENGTH, 5000))
    normal = cpu_s(lambda: stream.normal(LENGTH))
    print(
        f"\none draw of {LENGTH} values: {1000 * exact:.1f} ms, {exact / normal:.1f} times normal"
    )


if __name__ == "__main__":
    main()
