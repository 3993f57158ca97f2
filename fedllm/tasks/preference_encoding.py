"""From a ranking event to token sequences: one for each answer, or two for each pair of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

from fedllm.data.questions import question
from fedllm.data.rankings import Ranking
from fedllm.data.template import Template, end_token_id, template_of
from fedllm.errors import ConfigError
from fedllm.tasks.prompting import before_response, room_for

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedllm.data.encode import Labelling, Problem, TokenSequence
    from fedllm.data.records import Record

# As `fedllm.models.sequences`, which needs torch.
_AROUND, _ANSWER, _SECOND, _WORD = range(4)
_KINDS = 4
# What is wrong with a record.
_FINE, _ALIKE, _EMPTY = range(3)
# Between the two of a pair, and what is asked of them.
_FIRST, _OTHER = "\n\nAnswer A: ", "\n\nAnswer B: "
_QUESTION = "\n\nWhich answer is better, A or B?"
WORDS = ("A", "B")

Sequences = list[tuple[list[int], list[int]]]
Pairs = list[tuple[int, int]]


def reads_pairs(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer is an encoder's, which reads two texts with a mark between them."""
    return tokenizer.cls_token_id is not None and tokenizer.sep_token_id is not None


@dataclass(frozen=True)
class Rankings(ABC):
    """Turns events into sequences, each of at most ``max_length`` tokens.

    What is known of an event is cut alike for all of its answers. Pairs whose sequences are the
    same after that are left out.

    Attributes
    ----------
    blank : bool
        Whether an answer may have no tokens: one that a model wrote may, one that people preferred
        or rejected may not.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    blank: bool = False

    @property
    def labelling(self) -> Labelling:
        """A number for each token: which sequence it is of, and what it is there."""
        from fedllm.data.encode import labels_as_given

        return labels_as_given

    def sequences(self, records: Sequence[Record]) -> Iterator[TokenSequence]:
        """Tokenise events, the sequences of each end to end.

        Raises
        ------
        ConfigError
            If the tokenizer lacks what the objective needs, or ``max_length`` leaves no room.
        """
        from fedllm.data.encode import TokenSequence

        for record in records:
            ranking = Ranking.read_back(record.values)
            found, pairs, cut = self._of_event(ranking)
            tags = [
                [_KINDS * number + kind for kind in kinds]
                for number, (_, kinds) in enumerate(found)
            ]
            problem = _FINE
            if not all(ids for ids, _ in found):
                problem = _EMPTY
            elif not found or (ranking.pairs and not pairs):
                problem = _ALIKE
            ids = list(chain.from_iterable(ids for ids, _ in found))
            yield TokenSequence(ids, problem, list(chain.from_iterable(tags)), cut, pairs)

    def problem(self, sequence: TokenSequence, record: Record) -> Problem | None:
        """Refuse answers without tokens, and such as are the same in what is read of them."""
        if sequence.target == _EMPTY:
            return "one of its answers has no tokens", "take the answer out of the source"
        if sequence.target == _ALIKE:
            return (
                f"its answers are the same in the {self.max_length} tokens that are read",
                "raise model.max_length, or take the record out of the source",
            )
        return None

    @abstractmethod
    def _of_event(self, ranking: Ranking) -> tuple[Sequences, Pairs, int]:
        """Return tokens and kinds of sequences, which are compared, and how many were cut off."""

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        # Not verbose: too long sequences are cut here, the tokenizer need not warn of them.
        return list(
            self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        )


@dataclass(frozen=True)
class Answers(Rankings):
    """Each answer behind its prompt, as a model that writes would have written it.

    As in an instruction task, half of ``max_length`` (or less, if all answers are shorter) is kept
    for the longest answer, and the prompt gives way to it from the left; then answers are cut on
    the right, and have no end token.
    """

    def _of_event(self, ranking: Ranking) -> tuple[Sequences, Pairs, int]:
        asked = question(ranking.prompt, ranking.context)
        pair = self._paired if reads_pairs(self.tokenizer) else self._templated
        found, cut = pair(asked, ranking.answers)
        pairs = [(i, j) for i, j in ranking.pairs if found[i][0] != found[j][0]]
        return found, pairs, cut

    @cached_property
    def _template(self) -> Template:
        return template_of(self.tokenizer)

    @cached_property
    def _end(self) -> int:
        return end_token_id(self.tokenizer)

    def _templated(self, asked: str, answers: Sequence[str]) -> tuple[Sequences, int]:

        text = self._template.around(asked)
        before, *after = self._ids([text, *map(self._template.response, answers)])
        written = [[*ids, self._end] if ids or self.blank else [] for ids in after]
        shown = before_response(
            self.tokenizer, self._template, text, before, max(map(len, written)), self.max_length
        )
        found, cut = Sequences(), 0
        for ids in written:
            kept = ids[: self.max_length - len(shown)]
            cut += len(before) - len(shown) + len(ids) - len(kept)
            whole = [*shown, *kept] if ids else []
            kinds = [*[_AROUND] * len(shown), *[_ANSWER] * len(kept)] if ids else []
            found.append((whole, kinds))
        return found, cut

    def _paired(self, asked: str, answers: Sequence[str]) -> tuple[Sequences, int]:
        extra = self.tokenizer.num_special_tokens_to_add(pair=True)
        before, *after = self._ids([asked, *answers])
        longest = max(map(len, after))
        budget = room_for(longest + extra, self.max_length)
        if budget < 1 or self.max_length <= extra:
            raise ConfigError(
                f"model.max_length = {self.max_length} leaves no room for a prompt and an answer",
                "raise model.max_length",
            )
        shown = self._last(asked, budget)
        encoded = self.tokenizer(
            [shown] * len(answers),
            list(answers),
            truncation="only_second",
            max_length=max(self.max_length, extra + 1 + min(budget, len(before))),
            verbose=False,
        )
        found, cut = Sequences(), 0
        for place, ids in enumerate(encoded["input_ids"]):
            parts = encoded.sequence_ids(place)
            kinds = [_ANSWER if part == 1 else _AROUND for part in parts]
            cut += max(len(before) + len(after[place]) + extra - len(ids), 0)
            found.append((list(ids), kinds) if self.blank or _ANSWER in kinds else ([], []))
        return found, cut

    def _last(self, text: str, most: int) -> str:
        """Return the end of a text, of at most so many tokens."""
        encoded = self.tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        places = encoded["offset_mapping"]
        return text if len(places) <= most else text[places[len(places) - most][0] :]


@dataclass(frozen=True)
class Choices(Rankings):
    """Each pair of answers in both orders, and the word that names the better one.

    The word is the first token of the answer. In the first order the better answer of a pair is A,
    in the second it is B: what a model has for a letter or a place cancels in the mean of both
    (FedBis asks in one order alone). What is too long is cut so that the longest part gives way
    first: the prompt from the left, answers from the right.
    """

    def _of_event(self, ranking: Ranking) -> tuple[Sequences, Pairs, int]:
        before, first, other, asked, prompt, *answers = self._ids(
            [
                self._template.before,
                _FIRST,
                _OTHER,
                f"{_QUESTION}{self._template.after}",
                question(ranking.prompt, ranking.context),
                *ranking.answers,
            ]
        )
        gap, *words = self._words
        asked = [*asked, *gap]
        room = self.max_length - len(before) - len(first) - len(other) - len(asked) - 1
        if room < len(WORDS) + 1:
            raise ConfigError(
                f"model.max_length = {self.max_length} leaves no room for a prompt and two answers",
                "raise model.max_length",
            )
        number_of: dict[tuple[int, int], int] = {}
        found, pairs, cut = Sequences(), Pairs(), 0
        for better, worse in ranking.pairs or ((0, 1),):
            key = (min(better, worse), max(better, worse))
            if key not in number_of:
                parts = prompt, *(answers[place] for place in key)
                shares = _shares([len(part) for part in parts], room)
                cut += 2 * (sum(map(len, parts)) - sum(shares))
                shown = prompt[len(prompt) - shares[0] :]
                one, two = (part[:share] for part, share in zip(parts[1:], shares[1:], strict=True))
                if not one or not two:
                    return [([], [])], [], cut
                if one == two:
                    continue
                number_of[key] = len(found)
                for word, (a, b) in zip(words, ((one, two), (two, one)), strict=True):
                    ids = [*before, *shown, *first, *a, *other, *b, *asked, *word]
                    kinds = [_AROUND] * len(ids)
                    start = len(before) + len(shown) + len(first)
                    kinds[start : start + len(a)] = [_ANSWER] * len(a)
                    start += len(a) + len(other)
                    kinds[start : start + len(b)] = [_SECOND] * len(b)
                    kinds[-1] = _WORD
                    found.append((ids, kinds))
            place = number_of[key]
            if ranking.pairs:
                pairs.append((place, place + 1) if better == key[0] else (place + 1, place))
        return found, pairs, cut

    @cached_property
    def _template(self) -> Template:
        return template_of(self.tokenizer)

    def told_apart(self, ranking: Ranking) -> list[tuple[int, int]]:
        """Return the pairs of answers that differ in what is read of them, in their order."""
        alone = (replace(ranking, pairs=(pair,)) for pair in ranking.pairs)
        return [one.pairs[0] for one in alone if self._of_event(one)[1]]

    @cached_property
    def _words(self) -> tuple[list[int], list[int], list[int]]:
        """Return what both words begin with, such as a space, and then a token of each."""
        one, other = self._ids([self._template.response(word) for word in WORDS])
        same = 0
        while same < min(len(one), len(other)) and one[same] == other[same]:
            same += 1
        if same in (len(one), len(other)):
            raise ConfigError(
                "the model's tokenizer has no tokens of their own for the words A and B",
                "take another base model, or preference.objective = 'reward' or 'dpo'",
            )
        return one[:same], one[same : same + 1], other[same : same + 1]


def _shares(lengths: Sequence[int], room: int) -> list[int]:
    """Return how much of a prompt and two answers is kept: the longest give way first."""
    if sum(lengths) <= room:
        return list(lengths)
    most = 0
    for below, length in enumerate(sorted(lengths)):
        most = (room - sum(sorted(lengths)[:below])) // (len(lengths) - below)
        if most < length:
            break
    kept = [min(length, most) for length in lengths]
    # What is left goes to the first, the prompt: of two answers none is shown at greater length.
    kept[0] += min(room - sum(kept), lengths[0] - kept[0])
    return kept
