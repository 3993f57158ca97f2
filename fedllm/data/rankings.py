"""Which answers to a prompt people prefer: read from rows, put together, and written down.

A ranking event is a prompt with its context, some answers, and pairs of them of which the first
was preferred. All rows with one prompt and one context are one event: who answered it twice would
else be charged half of what they gave away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import isfinite

from fedllm.data.questions import question
from fedllm.data.spelling import seen
from fedllm.data.values import BadValueError, list_value, text_value

FEWEST, MOST = 2, 8
ANSWERS = f'give each row {FEWEST} to {MOST} answers with text, such as ["It is.", "No."]'
REMEDY = (
    f'give each row {FEWEST} to {MOST} answers with text, such as ["It is.", "No."], and one rank '
    "for each, such as [1, 2], 1 for the best, equal ones for a tie"
)
EQUAL = "take the row out, or correct it: two equal answers tell nothing of each other"


@dataclass(frozen=True)
class Ranking:
    """What is known of the answers to one prompt.

    Attributes
    ----------
    prompt, context : str
        An empty context is none.
    answers : tuple of str
        Different texts, in the order in which they came up.
    pairs : tuple of (int, int)
        Places of two answers, the preferred one first. Where several people were asked a pair
        may come more than once, and in both ways. Empty where all is tied.
    """

    prompt: str = field(repr=False)
    context: str = field(repr=False)
    answers: tuple[str, ...] = field(repr=False)
    pairs: tuple[tuple[int, int], ...]

    @property
    def disputed(self) -> int:
        """How many pairs of answers were preferred in both ways."""
        found = set(self.pairs)
        return sum((worse, better) in found for better, worse in found) // 2

    def written(self) -> dict[str, str]:
        """Return it as the values of a record."""
        return {
            "prompt": self.prompt,
            "context": self.context,
            "answers": _compact(self.answers),
            "pairs": _compact(self.pairs),
        }

    @classmethod
    def read_back(cls, values: Mapping[str, str]) -> Ranking:
        """Return the ranking of a record, as `written` gave it."""
        return cls(
            values["prompt"],
            values["context"],
            tuple(json.loads(values["answers"])),
            tuple((better, worse) for better, worse in json.loads(values["pairs"])),
        )


def ranking_of_row(values: Mapping[str, str], columns: Mapping[str, str]) -> Ranking:
    """Return what one row says.

    Parameters
    ----------
    values : mapping of str to str
        By role: "prompt", perhaps "context", and "chosen" and "rejected", or "answers" and "ranks"
        as `texts_value` and `numbers_value` gave them.
    columns : mapping of str to str
        Which column each role was read from.

    Raises
    ------
    BadValueError
        If answers are equal, or there are not as many ranks. Names the fields, quotes nothing.
    """

    def of(role: str) -> str:
        return f"field '{columns.get(role, role)}'"

    pair, several = values.keys() & {"chosen", "rejected"}, values.keys() & {"answers", "ranks"}
    if pair and several:
        raise BadValueError(
            f"{of(min(pair))} and {of(min(several))} are both there",
            "keep one of them: a row says which of two answers was preferred, or ranks several",
        )
    lacking = {"answers", "ranks"} - several if several else {"chosen", "rejected"} - pair
    for role in sorted(lacking):
        raise BadValueError(f"{of(role)} is empty", REMEDY if several else "")
    if pair:
        answers: tuple[str, ...] = (values["chosen"], values["rejected"])
        ranks: tuple[float, ...] = (1, 2)
    else:
        answers, ranks = tuple(json.loads(values["answers"])), tuple(json.loads(values["ranks"]))
    if len(answers) != len(ranks):
        raise BadValueError(
            f"{of('answers')} has {_several(len(answers), 'answer')}, and {of('ranks')} "
            f"{_several(len(ranks), 'rank')}",
            REMEDY,
        )
    first: dict[str, int] = {}
    for place, answer in enumerate(answers):
        if (other := first.setdefault(seen(answer), place)) != place:
            what = (
                f"{of('chosen')} and {of('rejected')} are"
                if pair
                else (f"{of('answers')}: answers {other + 1} and {place + 1} are")
            )
            raise BadValueError(f"{what} the same text", EQUAL)
    pairs = tuple((i, j) for i, j in permutations(range(len(answers)), 2) if ranks[i] < ranks[j])
    return Ranking(values["prompt"], values.get("context", ""), answers, pairs)


def together(rankings: Sequence[Ranking]) -> Ranking:
    """Put what several rows say of one prompt and context together.

    A pair that two rows name counts twice. Where they contradict each other both count: that is
    what people disagree about, and a probability of one half is what there is to learn.
    """
    places: dict[str, int] = {}
    texts: list[str] = []
    pairs: list[tuple[int, int]] = []
    for ranking in rankings:
        own = []
        for answer in ranking.answers:
            place = places.setdefault(seen(answer), len(texts))
            if place == len(texts):
                texts.append(answer)
            own.append(place)
        pairs.extend((own[better], own[worse]) for better, worse in ranking.pairs)
    first = rankings[0]
    return Ranking(first.prompt, first.context, tuple(texts), tuple(pairs))


def event_of(ranking: Ranking) -> str:
    """Return what rows of one ranking event have in common: the question, as it can be seen.

    So a context that stands in the prompt's own field makes no other event.
    """
    return seen(question(ranking.prompt, ranking.context))


def texts_value(value: object, column: str) -> str:
    """Return a field's answers in one form: JSON.

    Parameters
    ----------
    value : object
        A list of texts, or JSON text of one.
    column : str
        Where it was read.

    Raises
    ------
    BadValueError
        If it is something else, or has too few, too many or an empty one.
    """
    what, found = f"field '{column}'", []
    for number, text in enumerate(list_value(value, what, ANSWERS), 1):
        if not isinstance(text, str):
            raise BadValueError(f"{what}: answer {number} is no text", ANSWERS)
        if not text.strip():
            raise BadValueError(f"{what}: answer {number} is empty", ANSWERS)
        found.append(text_value(text, column))
    if not FEWEST <= len(found) <= MOST:
        raise BadValueError(f"{what} has {_several(len(found), 'answer')}", ANSWERS)
    return _compact(found)


def numbers_value(value: object, column: str) -> str:
    """Return a field's ranks in one form, JSON; see `texts_value`."""
    what, found = f"field '{column}'", []
    for number, rank in enumerate(list_value(value, what, REMEDY), 1):
        number_like = isinstance(rank, int | float) and not isinstance(rank, bool)
        if not number_like or (isinstance(rank, float) and not isfinite(rank)):
            raise BadValueError(f"{what}: rank {number} is no number", REMEDY)
        found.append(rank)
    return _compact(found)


def _several(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
