"""Make kept ratings, and the answers that they are of."""

from __future__ import annotations

from pathlib import Path

from fedllm.rating.answers import AnswerFile, Drawn, Model, Origin, Settings
from fedllm.rating.lines import PrivateLines
from fedllm.rating.prompts import Question
from fedllm.rating.store import Rating

QUESTION = Question(7, "What is measles?", "A child of two.\n", "a7", "person 3")
DRAWN = Drawn(("An infection.", "A \u201cflower\u201d.", "M\u00fcnchen"), 2)
ORIGIN = Origin(
    model=Model(name="ward-notes", fingerprint="ab" * 32),
    sampling=Settings(answers=3, temperature=0.7, top_p=0.9, seed=5, stops=("\n",), max_length=64),
)


def ratings() -> list[Rating]:
    """Return a line of each kind."""
    said = [("ranked", (2, 1, 2), "ann"), ("skipped", (), "bj\u00f6rn"), ("open", (), "ann")]
    return [
        Rating(
            rater=rater,
            time="2026-11-30T15:04:05+00:00",
            row=QUESTION.row,
            id=QUESTION.key,
            person=QUESTION.person,
            prompt=QUESTION.prompt,
            context=QUESTION.context,
            answers=DRAWN.texts,
            state=state,
            ranks=ranks,
            shown=(2, 0, 1),
            origin=ORIGIN,
        )
        for state, ranks, rater in said
    ]


def make(folder: Path) -> None:
    """Write ``ratings``."""
    log = PrivateLines(folder / "ratings" / "ratings.jsonl")
    log.prepare()
    for rating in ratings():
        log.append(rating)
    AnswerFile(folder / "ratings" / "ratings.answers.jsonl", ORIGIN).add(QUESTION, DRAWN)
