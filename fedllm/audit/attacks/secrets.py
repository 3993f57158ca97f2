"""Plant secrets into a sandboxed copy of a run, and see how much of them its model gives away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedllm.audit.attacks.extraction import Exposure, exposure, extracted
from fedllm.audit.attacks.results import Extracted, ExtractionResult
from fedllm.audit.attacks.sandbox import Sandbox, made_up_words
from fedllm.config import RunConfig
from fedllm.randomness import RandomStream
from fedllm.tasks.answering import Answering

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Secret:
    """A made-up person's code, that must not come out."""

    prompt: str
    response: str


def make_secrets(count: int, stream: RandomStream) -> list[Secret]:
    """Make secrets of one form: a question for a person's code, and the code."""
    return [
        Secret(f"the code of {made_up_words(stream, 2)} is", random_codes(1, stream)[0])
        for _ in range(count)
    ]


def random_codes(count: int, stream: RandomStream) -> list[str]:
    """Draw codes of the secrets' form."""
    digits = stream.below(10, count * _DIGITS).reshape(count, _DIGITS)
    return [" ".join(str(d) for d in row) for row in digits]


def audit_extraction(
    sandbox: Sandbox,
    answering: type[Answering],
    twin: RunConfig,
    secrets: int,
    candidates: int,
    stream: RandomStream,
    heard: Callable[[str, int, int], None],
) -> ExtractionResult:
    """Train as the run asks and once without privacy, both with planted secrets.

    Each secret stands as often in the records of its person as the run lets a person's
    records count; without persons, once.

    Parameters
    ----------
    answering : type of Answering
        How the task's model is asked.
    twin : RunConfig
        The same run without privacy.
    secrets, candidates : int
        How many are planted, and among how many each is ranked.
    """
    config = sandbox.config
    planted = make_secrets(secrets, stream)
    repeats = config.data.max_records_per_unit if config.data.unit else 1
    dataset = sandbox.encode(
        [
            replace(answering.record(secret.prompt, secret.response), unit=f"secret {place}")
            for place, secret in enumerate(planted)
            for _ in range(repeats)
        ]
        + [replace(record, unit=f"public {i}") for i, record in enumerate(sandbox.public)]
    )
    seed = int(stream.below(2**63, 1)[0])
    parts: list[tuple[str, RunConfig | None]] = [("before training", None)]
    if config.private:
        parts.append(("as the run asks", config))
    parts.append(("without privacy", twin))
    measured, models = [], []
    for name, part in parts:
        sandbox.reset()
        if part is not None:
            settings = sandbox.settings(dataset.number_of_units, part)
            sandbox.train(dataset, settings, _watch(heard, name, config.rounds.count))
        asked = answering(sandbox.model, config.model.max_length)
        ranking, model = _measure(asked, name, part, planted, candidates, seed)
        measured.append(ranking)
        models.append(model)
    return ExtractionResult(
        secrets=secrets,
        repeats=repeats,
        maximum=measured[0].maximum,
        expected=measured[0].expected,
        models=tuple(models),
    )


def _watch(
    heard: Callable[[str, int, int], None], name: str, rounds: int
) -> Callable[[int, NDArray[np.float32]], None]:
    return lambda number, update: heard(name, number, rounds)


def _measure(
    answering: Answering,
    name: str,
    config: RunConfig | None,
    planted: list[Secret],
    candidates: int,
    seed: int,
) -> tuple[Exposure, Extracted]:
    found = exposure(
        answering.losses, planted, random_codes, candidates, RandomStream.seeded(seed, "codes")
    )
    out = extracted(answering.complete, planted)
    epsilon = config.privacy.epsilon if config else None
    return found, Extracted(
        name=name, epsilon=epsilon, extracted=int(np.sum(out)), exposure=found.bits
    )
