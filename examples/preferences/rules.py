"""Rules that prefer answers without a model that reads them: what a model must beat."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from fedllm.data.rankings import Ranking

# A word that fewer training answers have says nothing of others.
FEWEST, STEPS = 5, 300
# Of 1, 3, 10, 30 and 100 the best by cross-validation over the training events of human.toml.
WEIGHT = 100.0
Score = Callable[[Ranking], Sequence[float]]


def words_of(text: str) -> list[str]:
    """Return the words of a text."""
    return re.findall(r"\w+", text.lower())


def longer(ranking: Ranking) -> list[float]:
    """Prefer the longer answer."""
    return [float(len(answer)) for answer in ranking.answers]


def overlap(ranking: Ranking) -> list[float]:
    """Prefer the answer of which a larger share of words stands in the question."""
    around = set(words_of(f"{ranking.prompt} {ranking.context}"))
    own = (set(words_of(answer)) for answer in ranking.answers)
    return [len(words & around) / max(len(words), 1) for words in own]


def unigram(training: Sequence[Ranking]) -> Score:
    """Return a Bradley-Terry model of the words that an answer has, with a ridge of `WEIGHT`."""
    counts = Counter(
        word for ranking in training for answer in ranking.answers for word in set(words_of(answer))
    )
    known = sorted(word for word, count in counts.items() if count >= FEWEST)
    place_of = {word: place for place, word in enumerate(known)}

    def vectors(ranking: Ranking) -> NDArray[np.float32]:
        found = np.zeros((len(ranking.answers), len(known)), np.float32)
        for row, answer in zip(found, ranking.answers, strict=True):
            row[[place_of[word] for word in set(words_of(answer)) if word in place_of]] = 1.0
        return found

    gaps = np.concatenate(list(_gaps(training, vectors)))
    weights = np.zeros(len(known), np.float32)
    # The largest curvature that the loss can have.
    rate = 1.0 / (0.25 * float(np.linalg.norm(gaps, 2)) ** 2 + WEIGHT)
    momentum = np.zeros_like(weights)
    for _ in range(STEPS):
        slope = gaps.T @ (-1.0 / (1.0 + np.exp(gaps @ weights))) + WEIGHT * weights
        momentum = 0.9 * momentum - rate * slope
        weights = weights + momentum
    return lambda ranking: (vectors(ranking) @ weights).tolist()


def _gaps(
    training: Sequence[Ranking], vectors: Callable[[Ranking], NDArray[np.float32]]
) -> Iterator[NDArray[np.float32]]:
    for ranking in training:
        if ranking.pairs:
            better, worse = np.array(ranking.pairs).T
            own = vectors(ranking)
            yield own[better] - own[worse]
