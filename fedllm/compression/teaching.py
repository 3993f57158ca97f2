"""The whole model teaches a smaller one on public texts; what was broken off goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedllm.compression.distilling import Distillation, distil
from fedllm.compression.linears import Linear
from fedllm.compression.resuming import Unfinished, beside, fingerprint
from fedllm.compression.texts import endless
from fedllm.compression.whole import Whole
from fedllm.randomness import RandomStream
from fedllm.tasks.public_texts import Tokens

Told = Callable[[int, int, float], None]


@dataclass(frozen=True, slots=True)
class Teaching:
    """How a smaller model is taught by the whole one.

    Attributes
    ----------
    how : Distillation
    rows : int
        Texts of a step.
    seed : int
        Orders the texts.
    """

    how: Distillation
    rows: int = 16
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is needed to teach.

    Attributes
    ----------
    whole : Whole
        The teacher.
    out : Path
        The folder that the student will lie in; how far teaching is lies beside it.
    texts : sequence of tuple of int
    teaching : Teaching
    told : callable
        Hears the number of the step, how many there are, and the loss.
    """

    whole: Whole
    out: Path
    texts: Sequence[Tokens]
    teaching: Teaching
    told: Told

    def teach(
        self,
        small: Whole,
        kept: tuple[int, ...],
        how: str,
        pruned: Mapping[str, Linear] | None = None,
    ) -> str:
        """Teach a student, in place; returns what was done, in words.

        Parameters
        ----------
        kept : tuple of int
            Which of the teacher's blocks the student has.
        how : str
            In what way it is smaller, as far as its weights do not tell.
        pruned : mapping, optional
            Its layers whose zeros stay.

        Raises
        ------
        FedllmError
            As `distil` and `Unfinished.resume`.
        """
        asked, tokenizer = self.teaching, self.whole.model.tokenizer
        models = (self.whole.module, small.module)
        own = fingerprint(models, [how, kept, asdict(asked), list(self.texts)])
        pad, steps = int(tokenizer.pad_token_id or 0), asked.how.steps
        last = distil(
            self.whole.module,
            small.module,
            kept,
            endless(self.texts, asked.rows, pad, RandomStream.seeded(asked.seed, "distilling")),
            asked.how,
            lambda step, loss: self.told(step, steps, loss),
            pruned,
            Unfinished(beside(self.out), own),
        )
        return (
            f"Taught by the whole model in {steps} steps of {asked.rows} of {len(self.texts)} "
            f"texts; loss at the end {last:.4g}."
        )

    def done(self) -> None:
        """Forget how far teaching was, once the student is written."""
        beside(self.out).unlink(missing_ok=True)
