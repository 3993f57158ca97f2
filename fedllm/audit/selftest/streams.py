"""Checks of the generator that all noise and all batches come from, and of its distributions."""

from __future__ import annotations

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedllm.audit.selftest.entropy import even_uniforms
from fedllm.audit.selftest.statistics import (
    binomial,
    centred,
    first,
    normal_shape,
    tail,
    uniform,
    variance,
)
from fedllm.privacy.discrete import discrete_gaussian, round_at_random
from fedllm.privacy.noise import gaussian_noise
from fedllm.randomness import RandomStream

_ENDS = (2.0, 3.0, 3.5, 4.0, 4.5, 5.0)
_CHUNK = 1 << 19
# More than any buffer holds.
_LARGE = (1 << 25) + 5
_DEVIATION = 50
# Of so many numbers of 50 bits no four equal another one.
_COMPARED, _MOST_EQUAL = 1 << 17, 3
_DRAWS, _BIN_BITS = 200_000, 4
_EVEN = 1_000_000


def generator(short_draws: int) -> str | None:
    """Streams are AES-256 in counter mode, and no two of them begin alike.

    ``short_draws`` streams are begun: with a key of 32 bits two of 2**17 are alike with a
    probability of 0.86, of 2**19 surely.
    """
    for size in (1, 16, 1000, _LARGE):
        key = os.urandom(32)
        plain = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(size))
        if RandomStream(key).bytes(size) != plain:
            return "a stream is not AES-256 in counter mode under its key"
    begun = {RandomStream.secure().bytes(16) for _ in range(short_draws)}
    if len(begun) < short_draws:
        return f"{short_draws - len(begun)} of {short_draws} fresh streams begin like another one"
    return None


def uniform_numbers() -> str | None:
    """Uniform numbers, whole numbers below a bound, and samples are what they must be."""
    stream = RandomStream.secure()
    numbers = stream.uniform(_DRAWS)
    if numbers.min() < 0 or numbers.max() >= 1:
        return "uniform numbers lie outside [0, 1)"
    bits = (numbers * 2.0**53).astype(np.int64)
    lowest = [int(np.count_nonzero((bits >> place) & 1)) for place in range(_BIN_BITS)]
    problems = [
        uniform(bits, 1 << 53, "uniform numbers"),
        *(binomial(one, _DRAWS, 0.5, "lowest bits of uniform numbers") for one in lowest),
        _distinct(numbers, "uniform numbers"),
        # Three quarters of 2**64, where a remainder would show most.
        uniform(stream.below(3 << 62, _DRAWS), 3 << 62, "numbers below a bound"),
    ]
    for bound in (3, 7):
        drawn = stream.below(bound, _DRAWS)
        problems += [
            binomial(int((drawn == one).sum()), _DRAWS, 1 / bound, f"numbers below {bound}")
            for one in range(bound)
        ]
    return first(*problems, _samples(stream))


def _samples(stream: RandomStream) -> str | None:
    if len(stream.poisson_sample(1000, 0.0)) or len(stream.poisson_sample(1000, 1.0)) != 1000:
        return "a sample at rate 0 or 1 is not nobody or everybody"
    for rate in (1 / 3, 0.0123456789):
        # None of the numbers is nearer to a rate than rounding could tell.
        with even_uniforms():
            found = len(stream.poisson_sample(_EVEN, rate))
        if abs(found - rate * _EVEN) > 1:
            return f"a sample at rate {rate:.9g} is drawn at rate {found / _EVEN:.9g}"
    for rate in (1e-3, 1 / 3, 0.99):
        drawn = stream.poisson_sample(_DRAWS, rate)
        if len(np.unique(drawn)) < len(drawn) or (np.diff(drawn) <= 0).any():
            return "a sample holds someone twice"
        half = int((drawn < _DRAWS // 2).sum())
        if problem := first(
            binomial(len(drawn), _DRAWS, rate, f"sample at rate {rate:.3g}"),
            binomial(half, _DRAWS // 2, rate, f"first half of a sample at rate {rate:.3g}"),
            # Of pairs that share nobody, so that they are independent.
            binomial(
                _pairs(drawn), _DRAWS // 2, rate**2, f"neighbours in a sample at rate {rate:.3g}"
            ),
        ):
            return problem
    return None


def _pairs(drawn: NDArray[np.int64]) -> int:
    chosen = np.zeros(_DRAWS, dtype=bool)
    chosen[drawn] = True
    return int((chosen[::2] & chosen[1::2]).sum())


def normal_numbers(draws: int) -> str | None:
    """Gaussian noise is normal out to five deviations, and fine-grained.

    Of 6e7 numbers thirty-four lie beyond five deviations; none with a probability of 1e-15.
    """
    stream, beyond, count = RandomStream.secure(), np.zeros(len(_ENDS), dtype=np.int64), 0
    sums = np.zeros(2)
    kept = gaussian_noise(stream, _COMPARED, 2.0) / 2.0
    while count < draws:
        values = gaussian_noise(stream, _CHUNK, 2.0) / 2.0
        sizes = np.abs(values)
        beyond += [int(np.count_nonzero(sizes > end)) for end in _ENDS]
        sums += (float(values.sum()), float(values @ values))
        count += len(values)
    spread = np.array([np.sqrt(sums[1])])
    return first(
        *(tail(int(n), count, end, "normal numbers") for n, end in zip(beyond, _ENDS, strict=True)),
        variance(spread, 1.0, "normal numbers", freedom=count),
        normal_shape(kept, "normal numbers"),
        centred(kept, 1.0, "normal numbers"),
        _distinct(kept, "normal numbers"),
    )


def discrete_numbers(draws: int) -> str | None:
    """Discrete noise has its exact probabilities, out to five deviations."""
    stream = RandomStream.secure()
    support = np.arange(-12 * _DEVIATION, 12 * _DEVIATION + 1)
    weights = np.exp(-(support**2) / (2.0 * _DEVIATION**2))
    weights /= weights.sum()
    counts = np.zeros(len(support), dtype=np.int64)
    count = 0
    while count < draws:
        drawn = discrete_gaussian(stream, _CHUNK, _DEVIATION)
        if np.abs(drawn).max() > 12 * _DEVIATION:
            return "discrete noise beyond twelve deviations"
        counts += np.bincount(drawn + 12 * _DEVIATION, minlength=len(support))
        count += len(drawn)
    problems = []
    for end in _ENDS:
        outside = np.abs(support) >= end * _DEVIATION
        what = f"discrete noise from {end:g} deviations on"
        problems.append(
            binomial(int(counts[outside].sum()), count, float(weights[outside].sum()), what)
        )
    for what, chosen in (
        ("even discrete noise", support % 2 == 0),
        ("discrete noise of 0", support == 0),
        ("positive discrete noise", support > 0),
        ("discrete noise within one deviation", np.abs(support) <= _DEVIATION),
    ):
        problems.append(
            binomial(int(counts[chosen].sum()), count, float(weights[chosen].sum()), what)
        )
    return first(*problems, *(_small(stream, deviation) for deviation in (1, 4)))


def _small(stream: RandomStream, deviation: int) -> str | None:
    drawn = discrete_gaussian(stream, _DRAWS, deviation)
    support = np.arange(-40 * deviation, 40 * deviation + 1)
    weights = np.exp(-(support**2) / (2.0 * deviation**2))
    weights /= weights.sum()
    return first(
        *(
            binomial(
                int((drawn == one).sum()),
                _DRAWS,
                float(weights[support == one][0]),
                f"discrete noise of {one} at deviation {deviation}",
            )
            for one in range(-3 * deviation, 3 * deviation + 1)
        )
    )


def rounding() -> str | None:
    """Random rounding goes to one of the two integers beside a value, and is right on average."""
    stream = RandomStream.secure()
    whole = np.arange(_DRAWS, dtype=np.float64) % 2001 - 1000
    for part in (0.0, 0.125, 0.5, 0.9):
        up = round_at_random(whole + part, stream) - whole
        if up.min() < 0 or up.max() > 1:
            return "a value was rounded further than to the next integer"
        if problem := binomial(int(up.sum()), _DRAWS, part, f"rounding up of {part:g}"):
            return problem
    return None


def _distinct(values: NDArray[np.float64], what: str) -> str | None:
    taken = values[:_COMPARED]
    equal = len(taken) - len(np.unique(taken))
    if equal <= _MOST_EQUAL:
        return None
    return f"{what}: {equal} of {len(taken)} equal another one"
