"""Raters, their answers and sessions, without a model; and a page for one of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedllm.rating.answers import AnswerFile, Drawn, Model, Origin, Settings
from fedllm.rating.prompts import Question
from fedllm.rating.session import Session
from fedllm.rating.store import Rating, RatingLog
from fedllm.rating.supply import Supply

ORIGIN = Origin(model=Model(name="run", fingerprint="ab" * 32), sampling=Settings(answers=3))
QUESTIONS = [
    Question(1, "What is measles?", "A child of two.", "a"),
    Question(2, "Is it <b>contagious</b>?"),
    Question(3, "And mumps?"),
]


def answers_to(question: Question, count: int = 3) -> Drawn:
    return Drawn(tuple(f"{question.prompt} answer {number}" for number in range(count)))


def draw(question: Question, given_up: Any) -> Drawn:
    return answers_to(question)


@contextmanager
def session(
    folder: Path,
    rater: str = "ann",
    questions: Sequence[Question] = tuple(QUESTIONS),
    sampling: Any = draw,
) -> Iterator[Session]:
    """One rater before prompts whose answers are there at once."""
    log = RatingLog(folder / "ratings.jsonl", rater, ORIGIN, questions)
    file = AnswerFile(folder / "ratings.answers.jsonl", ORIGIN)
    with Supply(file, questions, sampling) as supply:
        if sampling is draw:
            supply.finish()
        yield Session(questions, log, supply, rater, 0)


def rating(
    rater: str,
    ranks: Sequence[int],
    prompt: str = "p",
    answers: Sequence[str] = (),
    **more: Any,
) -> Rating:
    """What somebody said; ranks of nothing are a prompt that was skipped."""
    texts = tuple(answers) or tuple(f"answer {number}" for number in range(len(ranks) or 2))
    values = {
        "rater": rater,
        "time": "2026-01-01T00:00:00+00:00",
        "row": 1,
        "prompt": prompt,
        "answers": texts,
        "state": "ranked" if ranks else "skipped",
        "ranks": tuple(ranks),
        "shown": tuple(range(len(texts))),
        "origin": ORIGIN,
    }
    return Rating(**values | more)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@dataclass
class Listening:
    """A page that is served."""

    url: str
    port: int
    path: str
    stop: threading.Event
    log: list[str] = field(default_factory=list)


@contextmanager
def page(session: Session) -> Iterator[Listening]:
    """Serve one rater's page on loopback, in a thread of this process."""
    from fedllm.rating.browser import RatingPage
    from fedllm.serving.server import Address, listening_socket, serve

    stop, listening = threading.Event(), threading.Event()
    log, ports = list[str](), list[int]()
    served = RatingPage(session, stop, log.append)

    def ready(port: int) -> None:
        ports.append(port)
        listening.set()

    arguments = (served, listening_socket(Address("127.0.0.1", 0)), None, stop, ready, 5)
    thread = threading.Thread(target=serve, args=arguments)
    thread.start()
    try:
        assert listening.wait(30)
        (port,) = ports
        url = f"http://127.0.0.1:{port}{served.path}"
        yield Listening(url, port, served.path, stop, log)
    finally:
        stop.set()
        thread.join(30)
        assert not thread.is_alive()
