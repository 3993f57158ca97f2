"""Continue texts: every token of a text is learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedllm.config import DataSection, Task
from fedllm.data.columns import Column, task_columns
from fedllm.data.records import Record
from fedllm.randomness import RandomStream
from fedllm.tasks.base import Words
from fedllm.tasks.language import LanguageTask
from fedllm.tasks.prompting import PlainPrompting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedllm.data.encode import Labelling, Problem, TokenSequence


class Causal(LanguageTask):
    """One text a record."""

    @property
    def name(self) -> Task:
        """What it is called in a configuration."""
        return "causal"

    def columns(self, data: DataSection) -> dict[str, Column]:
        """Return the text."""
        return task_columns(self.name, data)

    def made_up(
        self, words: Words, stream: RandomStream, labels: tuple[str, ...], length: int = 8
    ) -> Record:
        """Make a text of twice the length, as prompt and response have together."""
        return Record({"text": words(2 * length)}, None, None, "made up")

    def encoder(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, labels: tuple[str, ...]
    ) -> Texts:
        """Return what turns texts into tokens."""
        return Texts(tokenizer, max_length)

    def answering(self) -> None:
        """Say that a model that continues texts answers no prompts."""

    def prompting(self) -> type[PlainPrompting]:
        """Return what goes on with a text as it stands."""
        return PlainPrompting


@dataclass(frozen=True)
class Texts:
    """Texts with the tokenizer's special tokens and an end-of-text token, cut to ``max_length``.

    The loss counts all tokens.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @property
    def labelling(self) -> Labelling:
        """Tokens, from the first one on."""
        from fedllm.data.encode import labels_of_tokens

        return labels_of_tokens

    def sequences(self, records: Sequence[Record]) -> Iterator[TokenSequence]:
        """Tokenise texts."""
        from fedllm.data.encode import TokenSequence, tokens_cut

        texts = [record.values["text"] for record in records]
        end = self.tokenizer.eos_token_id
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length)
        for ids, cut in zip(encoded["input_ids"], tokens_cut(encoded), strict=True):
            ended = end is None or ids[-1:] == [end] or len(ids) >= self.max_length
            yield TokenSequence(ids if ended else [*ids, end], 0, cut=cut)

    def problem(self, sequence: TokenSequence, record: Record) -> Problem | None:
        """Refuse texts without a second token, where the loss starts."""
        if len(sequence.ids) < 2:
            return "its text has no tokens to learn from", "take the record out of the source"
        return None
