"""Ask a model the demo's questions, and try to get the secrets out of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedllm.audit.attacks.extraction import Exposure, exposure, extracted
from fedllm.audit.ledgers.comparison import Example, ModelFigures
from fedllm.demo.corpus import DemoData, candidate_codes
from fedllm.randomness import RandomStream
from fedllm.tasks.answering import Answering


def measure(
    answering: Answering,
    data: DemoData,
    name: str,
    private: bool | None,
    candidates: int,
    seed: int,
) -> tuple[ModelFigures, list[str], Exposure]:
    """Ask all questions and try to get all secrets.

    Parameters
    ----------
    answering : Answering
        The model.
    data : DemoData
        Questions and secrets.
    name, private : str, bool or None
        See `ModelFigures`.
    candidates : int
        Codes that each secret is ranked among.
    seed : int
        The same seed ranks each model's secrets among the same codes.

    Returns
    -------
    figures, replies, exposure
        ``replies`` answer ``data.questions`` in order.
    """
    replies = answering.complete([question.prompt for question in data.questions])
    pairs = list(zip(data.questions, replies, strict=True))
    ranking = exposure(
        answering.losses,
        data.secrets,
        candidate_codes,
        candidates,
        RandomStream.seeded(seed, "demo", "candidates"),
    )
    figures = ModelFigures(
        name=name,
        private=private,
        accuracy=float(np.mean([q.keyword in reply.split() for q, reply in pairs])),
        exact=float(np.mean([q.response == reply.strip() for q, reply in pairs])),
        extracted=sum(extracted(answering.complete, data.secrets)),
        exposure=ranking.bits,
    )
    return figures, replies, ranking


def examples(data: DemoData, replies: Sequence[Sequence[str]], count: int) -> list[Example]:
    """Set the first ``count`` questions, each about another complaint, beside all replies."""
    return [
        Example(
            prompt=question.prompt,
            right=question.response,
            answers=tuple(model[index] for model in replies),
        )
        for index, question in enumerate(data.questions[:count])
    ]
