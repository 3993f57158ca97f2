"""A conversation with a model, as long as the model can read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from fedllm.data.template import Turn
from fedllm.models.generation import Completion, Generator, Writing
from fedllm.models.prompt_cache import KeptPrompts, PromptCache
from fedllm.models.rows import row_of
from fedllm.models.running_batch import running_batch_of
from fedllm.serving.usable import Usable
from fedllm.tasks.prompting import TemplatedPrompting


@dataclass
class Answer:
    """Hands on pieces of an answer, without the gap that it begins with."""

    gap: str
    heard: Callable[[str], None]

    def hear(self, piece: str) -> None:
        """Take the next piece, which is not empty."""
        piece, self.gap = piece.removeprefix(self.gap), ""
        if piece:
            self.heard(piece)


@dataclass
class Conversation:
    """Turns so far, and who answers.

    Attributes
    ----------
    turns : list of Turn
        What the system says, if anything, and what was said since.
    """

    usable: Usable
    generator: Generator
    prompting: TemplatedPrompting
    turns: list[Turn] = field(default_factory=list, repr=False)
    kept: KeptPrompts = field(
        default_factory=lambda: PromptCache().of("conversation", ""), repr=False
    )

    @classmethod
    def of(cls, usable: Usable, system: str | None = None) -> Conversation:
        """Begin one.

        Raises
        ------
        ConfigError
            If the model writes no text.
        """
        turns = [] if system is None else [Turn("system", system)]
        return cls(usable, usable.require_generator(), usable.conversing(), turns)

    def forget(self) -> None:
        """Begin anew; what the system says stays."""
        self.turns = [turn for turn in self.turns if turn.role == "system"]
        self.kept.cache.clear()

    def say(self, question: str, writing: Writing, heard: Callable[[str], None]) -> list[str]:
        """Ask, and hear the answer in pieces; return what there is to tell of it.

        Raises
        ------
        ConfigError
            If there is no room for the question; the conversation is as it was.
        """
        turns = [*self.turns, Turn("user", question)]
        room = self.usable.room_for_prompt(writing.new_tokens)
        prompt = self.prompting.conversation(turns, room)
        ended = replace(writing, stops=(*writing.stops, *self.prompting.next_turn))
        written = Answer(self.prompting.gap, heard)
        done = self._completed(prompt.ids, ended, written.hear)
        kept = [turn for turn in turns if turn.role != "system"][prompt.dropped :]
        system = [turn for turn in turns if turn.role == "system"]
        self.turns = [*system, *kept, Turn("assistant", done.text.removeprefix(self.prompting.gap))]
        told = []
        if prompt.dropped:
            told.append(
                f"the conversation is longer than {room} tokens: its first {prompt.dropped} turns "
                "are forgotten"
            )
        if prompt.cut:
            told.append(f"the question is too long: its first {prompt.cut} tokens were not read")
        if done.finish == "length":
            told.append(f"the answer ended after {len(done.tokens)} tokens (--max-new-tokens)")
        return told

    def _completed(
        self, prompt: tuple[int, ...], writing: Writing, heard: Callable[[str], None]
    ) -> Completion:
        """Write an answer; what was read and written of the conversation is not read again."""
        batch = running_batch_of(self.generator)
        if batch is None:
            (done,) = self.generator.write([prompt], writing, lambda _, piece: heard(piece))
            return done
        row = row_of(self.generator, prompt, writing, self.kept)
        pieces = batch.add([row])
        while pieces or len(batch):
            for _, piece in pieces:
                if piece:
                    heard(piece)
            pieces = batch.step()
        if row.error is not None:
            raise row.error
        written = row.transcript
        return Completion(written.text, tuple(written.tokens), written.finish or "stop")
