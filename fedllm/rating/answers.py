"""The answers that were sampled, kept beside the ratings: all raters see the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from fedllm.data.rankings import FEWEST, MOST
from fedllm.errors import ConfigError
from fedllm.rating.lines import PrivateLines
from fedllm.rating.prompts import Question

FORMAT = "fedllm.answers.v1"
_OPTIONS = {
    "answers": "--answers",
    "temperature": "--temperature",
    "top_p": "--top-p",
    "seed": "--seed",
    "new_tokens": "--max-new-tokens",
    "stops": "--stop",
    "max_length": "--max-length",
}


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Model(_Stored):
    """Which model wrote.

    Attributes
    ----------
    name : str
        Of its folder.
    fingerprint : str
        SHA-256 of what it is: of the adapter's files, which name their base, or of all files of a
        whole model.
    """

    name: str
    fingerprint: str


class Settings(_Stored):
    """How answers are sampled.

    Attributes
    ----------
    answers : int
        For each prompt.
    temperature, top_p, seed
        Of `fedllm.models.drawing.Sampling`.
    new_tokens, stops
        Of `fedllm.models.generation.Writing`.
    max_length : int, optional
        Tokens of prompt and answer together, where it is not the run's.
    """

    answers: Annotated[int, Field(ge=FEWEST, le=MOST)] = 4
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    new_tokens: Annotated[int, Field(ge=1)] = 256
    stops: tuple[str, ...] = ()
    max_length: int | None = None


class Origin(_Stored):
    """What answers are of: the first line of their file, and a part of every rating.

    Attributes
    ----------
    model : Model
        Which one wrote.
    sampling : Settings
        How.
    """

    model: Model
    sampling: Settings


@dataclass(frozen=True, slots=True)
class Drawn:
    """The answers to one prompt.

    Attributes
    ----------
    texts : tuple of str
        Distinct, in the order in which they were drawn; fewer than asked for where the model
        repeats itself.
    tokens_cut : int
        Of the prompt, how many the model did not read.
    unfinished : tuple of int
        Places of the texts that ended because no more tokens were asked for.
    """

    texts: tuple[str, ...]
    tokens_cut: int = 0
    unfinished: tuple[int, ...] = ()

    @property
    def can_be_ranked(self) -> bool:
        """Whether there is something to choose."""
        return len(self.texts) >= FEWEST


class _Line(_Stored):
    """A line of the file: what all answers are of, or the answers to one prompt."""

    format: Literal["fedllm.answers.v1"] | None = None
    origin: Origin | None = None
    unit: str = ""
    row: int = 0
    answers: Annotated[tuple[str, ...], Field(max_length=MOST)] = ()
    tokens_cut: int = 0
    unfinished: tuple[int, ...] = ()


def answers_beside(ratings: Path) -> Path:
    """Return where the answers lie of which a file has the ratings."""
    return ratings.with_name(f"{ratings.stem}.answers.jsonl")


class AnswerFile:
    """Answers of one model, sampled in one way; read when it is opened.

    Parameters
    ----------
    path : Path
        Made where it is not there.
    origin : Origin
        What the answers are to be of; also an attribute.

    Raises
    ------
    ConfigError
        If it is damaged, or holds answers of another model or other settings.
    """

    def __init__(self, path: Path, origin: Origin) -> None:
        self.origin = origin
        self._lines = PrivateLines(path)
        self._lines.prepare()
        found = self._lines.read(_Line)
        if not found:
            head = {"format": FORMAT, "origin": origin.model_dump(mode="json")}
            self._lines.append(head)
        elif found[0].origin is None:
            raise ConfigError(
                f"{path}, line 1: it does not say which model wrote the answers",
                "restore the file from a backup, or remove it: they are then sampled again",
            )
        else:
            require_same(path, found[0].origin, origin)
        self._drawn = {
            one.unit: Drawn(one.answers, one.tokens_cut, one.unfinished) for one in found[1:]
        }

    def get(self, question: Question) -> Drawn | None:
        """Return a prompt's answers; None where none were sampled yet."""
        return self._drawn.get(question.unit)

    def add(self, question: Question, drawn: Drawn) -> None:
        """Keep a prompt's answers; errors as of `fedllm.files.append_line`."""
        self._lines.append(
            {
                "unit": question.unit,
                "row": question.row,
                "answers": list(drawn.texts),
                "tokens_cut": drawn.tokens_cut,
                **({"unfinished": list(drawn.unfinished)} if drawn.unfinished else {}),
            }
        )
        self._drawn[question.unit] = drawn

    def missing(self, questions: Iterable[Question]) -> list[Question]:
        """Return the prompts that have no answers yet."""
        return [question for question in questions if question.unit not in self._drawn]


def require_same(path: Path, held: Origin, wanted: Origin) -> None:
    """Refuse a file of another model or other settings.

    Raises
    ------
    ConfigError
        Says what differs.
    """
    if held.model.fingerprint != wanted.model.fingerprint:
        raise ConfigError(
            f"{path} is of another model: of {held.model.name} with the fingerprint "
            f"{held.model.fingerprint[:16]}, and {wanted.model.name} has "
            f"{wanted.model.fingerprint[:16]}",
            "give the same model with --model, or another file with --out",
        )
    differing = [
        f"{option} {getattr(held.sampling, name)}"
        for name, option in _OPTIONS.items()
        if getattr(held.sampling, name) != getattr(wanted.sampling, name)
    ]
    if differing:
        raise ConfigError(
            f"the answers of {path} were sampled with {', '.join(differing)}",
            "give the same again, or another file with --out",
        )
