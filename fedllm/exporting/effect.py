"""What training did to a model's answers, and whether what is written still does it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fedllm.errors import TrainingError
from fedllm.exporting.probe import Probe, answers, untrained
from fedllm.exporting.released import Released

# What of the training's effect rounding may take or add, as root mean squares.
MOST_LOST = 0.25


@dataclass(frozen=True, eq=False)
class Effect:
    """Answers to a probe before and after training.

    Attributes
    ----------
    untrained : Tensor, optional
        (N, C) float32, what the run's head makes of the base as it was; None where the run trained
        a head alone.
    trained : Tensor
        (N, C) float32, what the run's own model gives.
    """

    untrained: Tensor | None
    trained: Tensor

    @classmethod
    def of(cls, released: Released, probe: Probe, trained: Tensor | None = None) -> Effect:
        """Ask a run's model, whose adapter must still be one."""
        wanted = answers(released, probe) if trained is None else trained
        if not released.model.adapts_layers:
            return cls(None, wanted)
        with untrained(released):
            return cls(answers(released, probe), wanted)

    @property
    def moved(self) -> float | None:
        """By how much training moved logits, as a root mean square; None as `untrained` is."""
        return None if self.untrained is None else rms(self.trained - self.untrained)

    def require_any(self) -> None:
        """Refuse a run whose adapter changes nothing.

        Raises
        ------
        TrainingError
        """
        if self.moved == 0.0:
            raise TrainingError(
                "the run's adapter changes nothing: what is written would be the base's own model",
                "look into why nothing was learned before the model is handed over",
            )

    def require_kept(
        self, what: str, found: Tensor, wanted: Tensor, remedy: str, most: float = MOST_LOST
    ) -> None:
        """Refuse what rounds away what was trained.

        Parameters
        ----------
        what : str
            Names what was written, such as "weights in bfloat16".
        found, wanted : Tensor
            (N, C): of what was written, and of the model that was to be written.
        most : float
            Share of what training moved.

        Raises
        ------
        TrainingError
            With the figures.
        """
        moved = self.moved
        if moved is None:
            return
        self.require_any()
        lost = rms(found - wanted)
        if not lost <= most * moved:
            raise TrainingError(
                f"{what} lose what was trained: logits move by {lost:.3g} on the mean, and "
                f"training moved them by {moved:.3g}",
                remedy,
            )

    def told(self, found: Tensor) -> str:
        """Say how far other answers are from the run's, against what training moved."""
        away = f"Its logits are {rms(found - self.trained):.3g} from the run's model's on the mean"
        if self.moved is None:
            return f"{away} (root mean square, on made-up tokens)."
        return (
            f"{away}, and training moved those by {self.moved:.3g} (root mean squares, on made-up "
            "tokens)."
        )


def rms(values: Tensor) -> float:
    """Return the root of the mean of squares."""
    return float(values.double().square().mean().sqrt())
