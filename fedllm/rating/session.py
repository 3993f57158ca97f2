"""One rater's way through the prompts: on, back, undone; the same on a terminal and on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fedllm.randomness import RandomStream
from fedllm.rating.answers import Drawn
from fedllm.rating.prompts import Question
from fedllm.rating.rankings import parse_ranking, ranking_text
from fedllm.rating.store import Rating, RatingLog, State
from fedllm.rating.supply import Supply

HELP = (
    "the numbers from the best answer to the worst, = between equally good ones, as in 2 1=3 4; "
    "s skip, b back, u undo, q quit; an empty line goes on where something is said already"
)
SKIP, BACK, UNDO, QUIT = "s", "b", "u", "q"


@dataclass(frozen=True)
class Item:
    """A prompt with its answers, as the rater sees them.

    Attributes
    ----------
    number, count : int
        Which prompt it is, from 1, and of how many.
    shown : tuple of int
        Places of the answers as they were sampled.
    said : str
        The rater's own ranking of what is shown, ``s`` where it was skipped; empty where nothing
        was said.
    """

    number: int
    count: int
    question: Question = field(repr=False)
    drawn: Drawn = field(repr=False)
    shown: tuple[int, ...]
    said: str

    @property
    def answers(self) -> list[str]:
        """The answers in the order in which they are shown, without white space around them."""
        return [self.drawn.texts[place].strip() for place in self.shown]

    @property
    def unfinished(self) -> list[bool]:
        """Of each of them, whether it would have gone on (``--max-new-tokens``)."""
        return [place in self.drawn.unfinished for place in self.shown]


class Session:
    """Where a rater is.

    Parameters
    ----------
    questions : sequence of Question
        All prompts.
    log : RatingLog
        What the rater said, and says.
    supply : Supply
        Hands out answers.
    rater : str
        Whose order of the answers it is.
    seed : int
        Of that order, which is the same whenever the rater comes back to a prompt.

    Attributes
    ----------
    step : int
        How often the rater did something; says whether what was shown is shown still.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        log: RatingLog,
        supply: Supply,
        rater: str,
        seed: int,
    ) -> None:
        self._questions, self._log, self._supply = questions, log, supply
        self._rater, self._seed = rater, seed
        self._done: list[tuple[int, Rating | None]] = []
        # Prompts to which the model has one answer alone.
        self._alike: set[int] = set()
        # What the rater did so far, by which a page is told from a later one.
        self.step = 0
        self._place = self._next_open(0)

    @property
    def finished(self) -> bool:
        """Whether the rater came to the end."""
        return self._place >= len(self._questions)

    def progress(self) -> str:
        """Say in a line how far it is."""
        said = [self._log.said(question) for question in self._questions]
        ranked = sum(one is not None and one.state == "ranked" for one in said)
        skipped = sum(one is not None and one.state == "skipped" for one in said)
        parts = [f"{ranked} of {len(self._questions)} ranked"]
        parts += [f"{skipped} skipped"] if skipped else []
        parts += [f"{len(self._alike)} without a choice of answers"] if self._alike else []
        parts += [f"answers to {self._supply.left} still sampled"] if self._supply.left else []
        return ", ".join(parts)

    def item(self, patience_s: float = 0.0) -> Item | None:
        """Return the prompt at which the rater is; None where its answers are not there yet.

        Also None where the rater is at the end. Prompts to which the model has fewer than two
        different answers are passed over.

        Raises
        ------
        FedllmError
            If the answers cannot be sampled.
        """
        while not self.finished:
            question = self._questions[self._place]
            drawn = self._supply.get(question, patience_s)
            if drawn is None:
                return None
            if drawn.can_be_ranked:
                return self._item(question, drawn)
            self._alike.add(self._place)
            self._place = self._next_open(self._place + 1)
        return None

    def _item(self, question: Question, drawn: Drawn) -> Item:
        stream = RandomStream.seeded(self._seed, "shown", self._rater, question.unit)
        shown = tuple(int(place) for place in stream.permutation(len(drawn.texts)))
        words, said = "", self._log.said(question)
        # Without their file, answers are sampled anew, and may be other ones elsewhere.
        if said is not None and said.answers == drawn.texts:
            ranks = [said.ranks[place] for place in shown] if said.ranks else []
            words = ranking_text(ranks) if ranks else SKIP
        return Item(self._place + 1, len(self._questions), question, drawn, shown, words)

    def obey(self, words: str, item: Item | None) -> str:
        """Do what a rater wrote: a ranking, ``s``, ``b``, ``u``, or nothing.

        Parameters
        ----------
        item : Item, optional
            What the rater saw; None at the end, where there is nothing to rank.

        Returns
        -------
        str
            What there is to say to the rater; empty where the next prompt says it.

        Raises
        ------
        RankingError
            If it cannot be read; nothing was changed.
        StorageError
            If it could not be kept; nothing was changed.
        """
        order = words.strip().lower()
        if order == UNDO:
            return "" if self.undo() else "nothing was said since this session began"
        if order == BACK:
            return "" if self.back() else "there is no prompt before this one"
        if item is None:
            return "there is nothing to rank here"
        if order == SKIP:
            self._say(item, "skipped")
        elif order or not item.said:
            self._say(item, "ranked", parse_ranking(order, len(item.shown)))
        else:
            self.step += 1
            self._place += 1
            self._place = self._next_open(0) if self.finished else self._place
        return ""

    def rank(self, item: Item, ranks: Sequence[int]) -> None:
        """Keep a ranking of what is shown; errors as `obey`."""
        self._say(item, "ranked", ranks)

    def _say(self, item: Item, state: State, ranks: Sequence[int] = ()) -> None:
        before = self._log.said(item.question)
        # From the order on the screen to that in which the answers were sampled.
        of_place = dict(zip(item.shown, ranks, strict=bool(ranks)))
        own = [of_place[place] for place in sorted(of_place)]
        self._log.add(item.question, item.drawn, item.shown, state, own)
        self.step += 1
        self._done.append((self._place, before))
        self._place = self._next_open(self._place + 1)

    def back(self) -> bool:
        """Go to the prompt before, and tell if there is one; nothing is changed."""
        places = [p for p in range(self._place) if p not in self._alike]
        self.step += bool(places)
        self._place = places[-1] if places else self._place
        return bool(places)

    def undo(self) -> bool:
        """Take the last thing back that was said since this session began; tell if there was one.

        What was said before that counts again.
        """
        if not self._done:
            return False
        place, before = self._done[-1]
        self._log.undo(self._questions[place], before)
        self.step += 1
        self._done.pop()
        self._place = place
        return True

    def _next_open(self, place: int) -> int:
        """Return the next prompt of which nothing is said, from a place on and then from the start.

        The number of prompts where there is none.
        """
        count = len(self._questions)
        order = [*range(place, count), *range(min(place, count))]
        for one in order:
            if one not in self._alike and self._log.said(self._questions[one]) is None:
                return one
        return count
