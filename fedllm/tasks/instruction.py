"""Answer prompts: the response is learned, the prompt is not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fedllm.config import DataSection, Task
from fedllm.data.columns import Column, task_columns
from fedllm.data.records import Record
from fedllm.data.template import Template, end_token_id, template_of
from fedllm.models.heads import LanguageHead
from fedllm.randomness import RandomStream
from fedllm.tasks.base import Words
from fedllm.tasks.language import LanguageTask
from fedllm.tasks.prompting import TemplatedPrompting, before_response

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedllm.data.encode import Labelling, Problem, TokenSequence
    from fedllm.tasks.answering import Answering


class Instruction(LanguageTask):
    """A prompt and its response."""

    @property
    def name(self) -> Task:
        """What it is called in a configuration."""
        return "instruction"

    def columns(self, data: DataSection) -> dict[str, Column]:
        """Return prompt and response."""
        return task_columns(self.name, data)

    def made_up(
        self, words: Words, stream: RandomStream, labels: tuple[str, ...], length: int = 8
    ) -> Record:
        """Make a prompt and a response."""
        values = {"prompt": words(length), "response": words(length)}
        return Record(values, None, None, "made up")

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: tuple[str, ...]
    ) -> Turns:
        """Return what turns prompts and responses into tokens."""
        return Turns(tokenizer, max_length)

    def head(self, labels: tuple[str, ...]) -> LanguageHead:
        """Return the base's own head; an encoder may read the prompt."""
        return LanguageHead(prompted=True)

    def answering(self) -> type[Answering]:
        """Return what completes prompts."""
        from fedllm.tasks.answering import Answering

        return Answering

    def prompting(self) -> type[TemplatedPrompting]:
        """Return what puts the template around a question."""
        return TemplatedPrompting


@dataclass(frozen=True)
class Turns:
    """`prompt_text`, the response, an end token; the loss counts response and end token.

    What is too long is cut so: half of ``max_length`` (or less, if the response is shorter) is
    kept for the response, and the prompt gives way to it from the left of its content, never
    of its template; then the response is cut on the right, and has no end token.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @property
    def labelling(self) -> Labelling:
        """Tokens, from the first one of the response on."""
        from fedllm.data.encode import labels_of_tokens

        return labels_of_tokens

    @cached_property
    def _template(self) -> Template:
        return template_of(self.tokenizer)

    @cached_property
    def _end(self) -> int:
        return end_token_id(self.tokenizer)

    def sequences(self, records: Sequence[Record]) -> Iterator[TokenSequence]:
        """Tokenise prompts and responses.

        Raises
        ------
        ConfigError
            If the tokenizer has no end token, or there is no room for a response.
        """
        from fedllm.data.encode import TokenSequence

        end = self._end
        prompts = [self._template.around(record.values["prompt"]) for record in records]
        answers = [self._template.response(record.values["response"]) for record in records]
        tokens = zip(self._token_ids(prompts), self._token_ids(answers), strict=True)
        for record, text, (before, after) in zip(records, prompts, tokens, strict=True):
            if not after or not record.values["response"].strip():
                yield TokenSequence([], 0)
                continue
            answer = [*after, end]
            shown = before_response(
                self.tokenizer, self._template, text, before, len(answer), self.max_length
            )
            ids = [*shown, *answer[: self.max_length - len(shown)]]
            yield TokenSequence(ids, len(shown), cut=len(before) + len(answer) - len(ids))

    def problem(self, sequence: TokenSequence, record: Record) -> Problem | None:
        """Refuse responses without tokens."""
        if not sequence.ids:
            return "its response has no tokens to learn from", "take the record out of the source"
        return None

    def _token_ids(self, texts: list[str]) -> list[list[int]]:
        # Not verbose: too long sequences are cut here, the tokenizer need not warn of them.
        return list(self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
