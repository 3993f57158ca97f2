"""What raters said: a log that grows by whole lines, of which the latest one counts."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedllm import clock
from fedllm.data.rankings import FEWEST, MOST
from fedllm.data.spelling import seen
from fedllm.errors import ConfigError
from fedllm.rating.answers import Drawn, Origin, Settings, require_same
from fedllm.rating.lines import PrivateLines
from fedllm.rating.prompts import Question, unit_of
from fedllm.rating.rankings import dense
from fedllm.visible import visible

_LONGEST_NAME = 64
State = Literal["ranked", "skipped", "open"]


class Rating(BaseModel):
    """One line: what a rater said of one prompt, or that it is taken back.

    Attributes
    ----------
    rater, time : str
        Who, and when (UTC).
    row, id, person
        Of the prompt in its file.
    prompt, context : str
        The texts themselves: a line needs no other file.
    answers : tuple of str
        In the order in which they were sampled.
    state : {"ranked", "skipped", "open"}
        ``open``: taken back, as if nothing had been said.
    ranks : tuple of int
        Of each answer; dense, 1 is best. Empty where none were given.
    shown : tuple of int
        Places in ``answers``, from 0, in the order in which the rater saw them.
    origin : Origin
        Which model wrote, and how.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Literal["fedllm.rating.v1"] = "fedllm.rating.v1"
    rater: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]
    time: str
    row: int
    id: str | int | None = None
    person: Annotated[str, Field(repr=False)] = ""
    prompt: Annotated[str, Field(min_length=1, repr=False)]
    context: Annotated[str, Field(repr=False)] = ""
    answers: Annotated[tuple[str, ...], Field(min_length=FEWEST, max_length=MOST, repr=False)]
    state: State
    ranks: tuple[int, ...] = ()
    shown: tuple[int, ...]
    origin: Origin

    @model_validator(mode="after")
    def _fits(self) -> Self:
        count = len(self.answers)
        if len(set(map(seen, self.answers))) < count or sorted(self.shown) != list(range(count)):
            raise ValueError("answers or their order do not fit")
        wanted = count if self.state == "ranked" else 0
        if len(self.ranks) != wanted or self.ranks != dense(self.ranks):
            raise ValueError("ranks do not fit the answers")
        return self

    @cached_property
    def unit(self) -> str:
        """What tells the prompt from others."""
        return unit_of(self.prompt, self.context)

    @property
    def is_undecided(self) -> bool:
        """Whether all answers are ranked as equally good."""
        return self.state == "ranked" and set(self.ranks) == {1}


def read_ratings(paths: Iterable[Path]) -> list[Rating]:
    """Return all lines of several logs; errors as of `PrivateLines.read`.

    Raises
    ------
    ConfigError
        If there is not a single one.
    """
    places = list(paths)
    found = [line for path in places for line in PrivateLines(path).read(Rating)]
    if not found:
        raise ConfigError(
            f"{', '.join(map(str, places))} holds no ratings",
            "run: fedllm rate FILE --model RUN",
        )
    return found


def latest(ratings: Iterable[Rating]) -> list[Rating]:
    """Return what counts: of a rater, a prompt and one model's answers the latest line.

    None where that line takes back. By time, so that nothing hangs on the order in which files are
    named; lines of the same second count in the order in which they are given. What was said of the
    same answers under two origins, such as another limit of tokens, counts once.

    In the order in which the prompts were first rated.
    """
    said: dict[tuple[str, str, str, Settings], Rating] = {}
    for rating in sorted(ratings, key=_time):
        model, sampling = rating.origin.model.fingerprint, rating.origin.sampling
        said[rating.rater, rating.unit, model, sampling] = rating
    last: dict[tuple[str, str, frozenset[str]], Rating] = {}
    for rating in sorted(said.values(), key=_time):
        if rating.state != "open":
            last[rating.rater, rating.unit, frozenset(rating.answers)] = rating
    counted = set(map(id, last.values()))
    return [rating for rating in said.values() if id(rating) in counted]


def _time(rating: Rating) -> str:
    # All are UTC in one form, so that they sort as they are.
    return rating.time


def checked_name(name: str) -> str:
    """Return a rater's name without white space around it, in one spelling (NFC).

    Raises
    ------
    ConfigError
        If it is empty, too long, or holds what does not show.
    """
    found = unicodedata.normalize("NFC", name).strip()
    if not found or len(found) > _LONGEST_NAME or visible(found) != found:
        raise ConfigError(
            "the rater's name is empty, too long, or holds what does not show",
            f"give a name of at most {_LONGEST_NAME} characters with --rater",
        )
    return found


class RatingLog:
    """One rater's view of a log: what this rater said, and where it goes.

    Parameters
    ----------
    path : Path
        The log, made where it is not there.
    rater : str
        See `checked_name`.
    origin : Origin
        Of the answers.
    questions : sequence of Question
        All prompts that are to be rated.

    Raises
    ------
    ConfigError
        If the log is damaged, or has ratings of another model, other settings or other prompts.
    """

    def __init__(
        self, path: Path, rater: str, origin: Origin, questions: Sequence[Question]
    ) -> None:
        self._lines = PrivateLines(path)
        self._lines.prepare()
        self._rater, self._origin = rater, origin
        known, strange = {question.unit for question in questions}, set[str]()
        self._said: dict[str, Rating] = {}
        self._newest = ""
        for rating in self._lines.read(Rating):
            self._newest = max(self._newest, rating.time)
            require_same(path, rating.origin, origin)
            if rating.unit not in known:
                strange.add(rating.unit)
            elif rating.rater == rater:
                self._said[rating.unit] = rating
        if strange:
            raise ConfigError(
                f"{path} has ratings of {len(strange)} prompts that are not in this file",
                "give the file that they are of, which may have grown, or another one with --out",
            )

    def said(self, question: Question) -> Rating | None:
        """Return what this rater said of a prompt last; None where nothing counts."""
        found = self._said.get(question.unit)
        return None if found is None or found.state == "open" else found

    def add(
        self,
        question: Question,
        drawn: Drawn,
        shown: Sequence[int],
        state: State,
        ranks: Sequence[int] = (),
    ) -> None:
        """Append what the rater says now; errors as of `fedllm.files.append_line`.

        Parameters
        ----------
        ranks : sequence of int
            Of the answers as they were sampled.
        """
        self._append(
            Rating(
                rater=self._rater,
                time=self._now(),
                row=question.row,
                id=question.key,
                person=question.person,
                prompt=question.prompt,
                context=question.context,
                answers=drawn.texts,
                state=state,
                ranks=tuple(ranks),
                shown=tuple(shown),
                origin=self._origin,
            )
        )

    def undo(self, question: Question, before: Rating | None) -> None:
        """Let what was said of a prompt before count again; None: nothing was said.

        Errors as of `fedllm.files.append_line`.
        """
        found = self._said[question.unit] if before is None else before
        update: dict[str, object] = {"time": self._now()}
        if before is None:
            update |= {"state": "open", "ranks": ()}
        self._append(found.model_copy(update=update))

    def _now(self) -> str:
        # A clock that was set back must not put a line before those that it replaces.
        return max(self._newest, clock.utc_now())

    def _append(self, rating: Rating) -> None:
        self._lines.append(rating)
        self._newest = rating.time
        self._said[rating.unit] = rating
