"""What the tasks that predict the next token have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from math import exp
from typing import TYPE_CHECKING, Any

from fedllm.config import DataSection
from fedllm.data.records import Record
from fedllm.models.heads import LanguageHead
from fedllm.tasks.base import LearningTask
from fedllm.tasks.scores import LOSS, Score

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from fedllm.models.shared import SharedModel
    from fedllm.models.transformer import Batch
    from fedllm.tasks.answering import Answering
    from fedllm.tasks.prompting import Prompting


class LanguageTask(LearningTask):
    """Learns tokens with the base's own head, which must be causal; has no labels."""

    def unit(self, record: Record) -> str | None:
        """Return the person, if there is one: a record is a unit by itself."""
        return record.unit

    def labels(self, data: DataSection, public: Sequence[Record]) -> tuple[str, ...]:
        """Return no labels."""
        return ()

    def counted(self, records: Sequence[Record]) -> str:
        """Have nothing to add."""
        return ""

    def head(self, labels: tuple[str, ...]) -> LanguageHead:
        """Return the base's own head."""
        return LanguageHead()

    def losses(self, model: SharedModel, batch: Batch) -> Tensor:
        """Return the cross-entropy of the next token.

        Averaged over the tokens of the record that count (label not -100); a record without
        any counts 0.
        """
        import torch

        losses, rows = token_losses(model, batch)
        size = len(batch["labels"])
        counts = torch.bincount(rows, minlength=size).clamp(min=1)
        return losses.new_zeros(size).index_add_(0, rows, losses) / counts

    @abstractmethod
    def answering(self) -> type[Answering] | None:
        """Return what completes prompts with a tuned model; None if it answers no prompts."""

    @abstractmethod
    def prompting(self) -> type[Prompting]:
        """Return what puts a person's words to a tuned model."""

    def predicting(self) -> None:
        """Say that a model that writes gives no labels."""

    def sums(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return loss and tokens."""
        import numpy as np

        losses, _ = token_losses(model, batch)
        return np.array([float(losses.detach().double().sum()), len(losses)])

    def figures(
        self, sums: NDArray[np.float64], records: int, labels: tuple[str, ...]
    ) -> dict[str, float]:
        """Return mean loss of a token in nats, perplexity, and how many tokens and records."""
        loss, count = sums.tolist()
        return {
            "loss": loss / count,
            "perplexity": exp(min(loss / count, 700.0)),
            "tokens": count,
            "records": float(records),
        }

    @property
    def measures(self) -> tuple[str, ...]:
        """Loss; perplexity is the same in other words."""
        return ("loss",)

    @property
    def site_scores(self) -> tuple[Score, ...]:
        """Loss alone."""
        return (LOSS,)

    def scores(self, model: SharedModel, batch: Batch) -> NDArray[np.float64]:
        """Return for each record the mean loss of its tokens, in nats."""
        return self.losses(model, batch).detach().double().cpu().numpy()[:, None]

    def confidence(self, losses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return minus the mean loss of a token, which is nearly normal as it is."""
        return -losses


def token_losses(model: SharedModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of each token that counts, (N,), and the record it belongs to, (N,)."""
    # Of one that predicts tokens, which `head` asks for.
    module: Any = model.module
    losses, rows = module.token_losses(batch)
    return losses, rows
