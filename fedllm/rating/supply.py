"""Answers ahead of the rater: sampled by one thread while somebody reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from fedllm.errors import FedllmError
from fedllm.rating.answers import AnswerFile, Drawn
from fedllm.rating.prompts import Question

# Samples a prompt's answers; the second argument says whether to stop.
Draw = Callable[[Question, Callable[[], bool]], Drawn | None]


class Supply:
    """Hands out answers as they are there.

    Parameters
    ----------
    file : AnswerFile
        What was sampled, and where what is sampled goes.
    questions : sequence of Question
        All prompts, in their order.
    draw : callable, optional
        Samples; None where all answers are there.
    """

    def __init__(
        self, file: AnswerFile, questions: Sequence[Question], draw: Draw | None = None
    ) -> None:
        self._file, self._draw = file, draw
        self._left = file.missing(questions)
        self._changed = threading.Condition()
        self._stopping = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)

    def __enter__(self) -> Supply:
        """Begin to sample."""
        if self._draw is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop at the next token; what is not whole is thrown away."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def left(self) -> int:
        """How many prompts have no answers yet."""
        return len(self._left)

    def get(self, question: Question, patience_s: float = 0.0) -> Drawn | None:
        """Return a prompt's answers, which are sampled next if need be; None: not there yet.

        Raises
        ------
        FedllmError
            If they cannot be sampled.
        """
        with self._changed:
            if question in self._left[1:]:
                self._left.remove(question)
                self._left.insert(0, question)
            self._changed.wait_for(
                lambda: self._failure is not None or self._file.get(question) is not None,
                patience_s,
            )
            found = self._file.get(question)
            if found is None and self._failure is not None:
                raise self._failed()
        return found

    def finish(self, heard: Callable[[int], None] = lambda left: None) -> None:
        """Wait until all prompts have answers.

        Parameters
        ----------
        heard : callable
            Told how many are left.

        Raises
        ------
        FedllmError
            If they cannot be sampled.
        """
        with self._changed:
            while self._left:
                if self._failure is not None:
                    raise self._failed()
                heard(len(self._left))
                self._changed.wait(0.5)
        heard(0)

    def _failed(self) -> BaseException:
        if isinstance(self._failure, FedllmError):
            return self._failure
        # Its own words may quote a prompt.
        return FedllmError(f"the answers cannot be sampled ({type(self._failure).__name__})")

    def _work(self) -> None:
        try:
            while (question := self._next()) is not None and self._draw is not None:
                drawn = self._draw(question, lambda: self._stopping)
                if drawn is None:
                    return
                with self._changed:
                    self._file.add(question, drawn)
                    self._left.remove(question)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _next(self) -> Question | None:
        with self._changed:
            return self._left[0] if self._left and not self._stopping else None
