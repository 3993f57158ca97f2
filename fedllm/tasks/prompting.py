"""From a person's words to the tokens that a model goes on from, as in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from fedllm.data.template import (
    PLAIN_QUESTION,
    Template,
    Turn,
    brings_template,
    conversation_text,
    end_token_id,
    template_of,
)
from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to go on from.

    Attributes
    ----------
    ids : tuple of int
    cut : int
        Tokens that were left out at the front, to leave room.
    dropped : int
        Earlier turns of a conversation that were.
    """

    ids: tuple[int, ...]
    cut: int = 0
    dropped: int = 0


class Prompting(ABC):
    """How texts are put to a model.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase
        Of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @property
    @abstractmethod
    def ends(self) -> tuple[int, ...]:
        """Tokens that end what is written."""

    @property
    def gap(self) -> str:
        """What every answer begins with, and is no part of it."""
        return ""

    @abstractmethod
    def prompt(self, text: str, most: int | None) -> Prompt:
        """Return a text's tokens, at most so many: it gives way from the left.

        Raises
        ------
        ConfigError
            If there is no room for any of it.
        """


class PlainPrompting(Prompting):
    """Goes on with a text as it stands, with the tokenizer's special tokens before it."""

    @property
    def ends(self) -> tuple[int, ...]:
        """The end-of-text token, if the tokenizer has one."""
        end = self.tokenizer.eos_token_id
        return () if end is None else (int(end),)

    def prompt(self, text: str, most: int | None) -> Prompt:
        """Return a text's tokens; see the base class."""
        encoded = self.tokenizer(text, return_special_tokens_mask=True, verbose=False)
        ids, special = list(encoded["input_ids"]), list(encoded["special_tokens_mask"])
        # Behind an end there is nothing to go on with.
        while ids and special[-1]:
            ids, special = ids[:-1], special[:-1]
        first = next((place for place, one in enumerate(special) if not one), len(ids))
        if most is None or len(ids) <= most:
            return Prompt(tuple(ids))
        _require_room(first, most)
        kept = ids[:first] + ids[len(ids) - (most - first) :]
        return Prompt(tuple(kept), len(ids) - len(kept))


class TemplatedPrompting(Prompting):
    """Answers: the template of the model's tokenizer stands around what is asked."""

    @cached_property
    def _template(self) -> Template | None:
        """What stands around a prompt; None where a chat template does more, as no run's does."""
        try:
            return template_of(self.tokenizer)
        except ConfigError:
            # One that cannot be run at all is told where it is run.
            return None

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """What ends a response in training, and the end-of-text token."""
        found = (end_token_id(self.tokenizer), self.tokenizer.eos_token_id)
        return tuple(dict.fromkeys(int(token) for token in found if token is not None))

    @property
    def gap(self) -> str:
        """The space that plain text needs."""
        return "" if self._template is None else self._template.gap

    @property
    def next_turn(self) -> tuple[str, ...]:
        """What begins the next question where no token does, so that a model may go on with it."""
        if self._template is None or brings_template(self.tokenizer):
            return ()
        return (f"\n{PLAIN_QUESTION}",)

    def prompt(self, text: str, most: int | None) -> Prompt:
        """Return the tokens of a text in its template, exactly as in training."""
        if self._template is None:
            return self._of_conversation([Turn("user", text)], most)
        around = self._template.around(text)
        ids = list(self.tokenizer(around, add_special_tokens=False, verbose=False)["input_ids"])
        if most is None or len(ids) <= most:
            return Prompt(tuple(ids))
        _require_room(len(shortened(self.tokenizer, self._template, around, 0)), most)
        kept = shortened(self.tokenizer, self._template, around, most)
        return Prompt(tuple(kept), len(ids) - len(kept))

    def conversation(self, turns: Sequence[Turn], most: int | None) -> Prompt:
        """Return the tokens of a conversation whose last turn is to be answered.

        Where they are too many, the earliest questions and their answers go first, and no more of
        them than must; what the system says stays. A longer conversation is taken for one of more
        tokens, so that few lengths need be tried.

        Raises
        ------
        ConfigError
            If the last turn is nobody's question, the model's chat template refuses the turns, or
            there is no room even for the last one.
        """
        _require_question(turns)
        system = [turn for turn in turns if turn.role == "system"]
        said = [turn for turn in turns if turn.role != "system"]
        # Where what is kept may begin: with a question.
        starts = [n for n, turn in enumerate(said) if n == 0 or turn.role == "user"]
        rendered: dict[int, Prompt] = {}

        def fits(number: int) -> bool:
            kept = [*system, *said[starts[number] :]]
            rendered[number] = self._of_conversation(kept, None)
            return most is None or len(rendered[number].ids) <= most

        last = len(starts) - 1
        chosen = _first(last, fits)
        dropped, kept = starts[chosen], said[starts[chosen] :]
        if not system and len(kept) == 1:
            found = self.prompt(kept[0].content, most)
            return Prompt(found.ids, found.cut, dropped)
        if chosen == last:
            return replace(self._of_conversation([*system, *kept], most), dropped=dropped)
        return replace(rendered[chosen], dropped=dropped)

    def whole_conversation(self, turns: Sequence[Turn]) -> Prompt:
        """Return the tokens of a conversation, however long, with one look at its turns.

        Raises
        ------
        ConfigError
            If the last turn is nobody's question, or the model's chat template refuses the turns.
        """
        _require_question(turns)
        if len(turns) == 1:
            return self.prompt(turns[0].content, None)
        return self._of_conversation(turns, None)

    def _of_conversation(self, turns: Sequence[Turn], most: int | None) -> Prompt:
        text = conversation_text(self.tokenizer, turns)
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if most is not None and len(ids) > most:
            raise ConfigError(
                f"the question, and what the system says, have {len(ids)} tokens; there is room "
                f"for {most}",
                "give a shorter question, fewer new tokens, or a larger length",
            )
        return Prompt(tuple(ids))


def _require_question(turns: Sequence[Turn]) -> None:
    if not turns or turns[-1].role != "user":
        raise ConfigError(
            "the last turn of the conversation is not the user's", "let it end with a question"
        )


def _first(last: int, holds: Callable[[int], bool]) -> int:
    """Return the first number for which something holds, as it does for all that follow.

    ``last`` where it holds for none before, which is not asked for itself. Few are asked: those at
    doubling distances, for it is most often one of the first, and then by halving.
    """
    before, tried = -1, 0
    while tried < last and not holds(tried):
        before, tried = tried, 2 * tried + 1
    return bisect_left(range(last), True, before + 1, min(tried, last), key=holds)


def shortened(
    tokenizer: PreTrainedTokenizerBase, template: Template, text: str, most: int
) -> list[int]:
    """Drop tokens from the left of the prompt's content, and none of the template's.

    Parameters
    ----------
    text : str
        A result of `Template.around`.
    most : int
        Tokens to keep, if the template has not more by itself.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    first, last = template.span(text)
    inside = [
        number
        for number, (start, stop) in enumerate(encoded["offset_mapping"])
        if first <= start < stop <= last
    ]
    dropped = set(inside[: max(len(encoded["input_ids"]) - most, 0)])
    return [t for number, t in enumerate(encoded["input_ids"]) if number not in dropped]


def room_for(response: int, max_length: int) -> int:
    """Return how many tokens a prompt may have: half at least stays for a response that needs it.

    Parameters
    ----------
    response : int
        Tokens of the response, or of the longest of several.
    max_length : int
        Of both together.
    """
    return max_length - min(response, (max_length + 1) // 2)


def before_response(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    text: str,
    whole: list[int],
    response: int,
    max_length: int,
) -> list[int]:
    """Return the tokens of a prompt, shortened from the left where a response needs the room.

    Parameters
    ----------
    text : str
        A result of `Template.around`.
    whole : list of int
        All of its tokens.
    response, max_length : int
        As in `room_for`.

    Raises
    ------
    ConfigError
        If the template alone leaves no room for a response.
    """
    budget = room_for(response, max_length)
    shown = whole if len(whole) <= budget else shortened(tokenizer, template, text, budget)
    if len(shown) >= max_length:
        raise ConfigError(
            f"model.max_length = {max_length} leaves no room for a response after the prompt's "
            f"template of {len(shown)} tokens",
            "raise model.max_length",
        )
    return shown


def _require_room(around: int, most: int) -> None:
    if around >= most:
        raise ConfigError(
            f"there is room for a prompt of {most} tokens, and what stands around it has {around}",
            "give fewer new tokens, or a larger length",
        )
