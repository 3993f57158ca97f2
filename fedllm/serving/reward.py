"""A released reward model: how good each answer is to its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedllm.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from fedllm.serving.released import Released


@dataclass(frozen=True, eq=False)
class RewardModel:
    """The frozen model of a run with ``task = "preference"`` and ``objective = "reward"``.

    What it says is of the released adapter and its base alone: to ask it touches no private
    record, and costs nothing.

    Attributes
    ----------
    released : Released
        The run's model.
    """

    released: Released

    @classmethod
    def opened(cls, run: Path, base: str | None = None, device: str | None = None) -> RewardModel:
        """Open a run.

        Parameters
        ----------
        run : Path
            The folder of a finished run, or its folder ``adapter``.
        base : str, optional
            The base model's folder, where it is not the one that the run names.
        device : str, optional
            Where it computes; as the run says when left out.

        Raises
        ------
        ConfigError
            If the run trained no reward model; see also `fedllm.serving.released.load_released`.
        CheckpointError
            If a file is missing or damaged, or the base is another model than the adapter's.
        """
        from fedllm.serving.released import load_released

        released = load_released(run, base, device)
        learned = released.model.preference
        if learned is None or learned.objective != "reward":
            raise ConfigError(
                f"{run} holds no reward model: its task is {released.config.task!r}"
                + ("" if learned is None else f", its objective {learned.objective!r}"),
                "give a run with task = 'preference' and preference.objective = 'reward'",
            )
        return cls(released)

    @property
    def base_fingerprint(self) -> str:
        """SHA-256 of the base model's files, and of how its weights are held."""
        return self.released.model.fingerprint

    @property
    def adapter_fingerprint(self) -> str:
        """SHA-256 of the files of the adapter and its head."""
        return str(self.released.about["adapter"])

    @property
    def max_length(self) -> int:
        """Tokens that it reads of a prompt with its answer."""
        return self.released.config.model.max_length

    def score(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        contexts: Sequence[str] | None = None,
    ) -> Tensor:
        """Return one reward for each pair of a prompt and an answer, (N,), float32, on the CPU.

        Only differences between answers to one prompt have a meaning (Bradley and Terry 1952): of
        two answers, the first is preferred with probability sigmoid(first - second).

        Parameters
        ----------
        prompts, answers : sequence of str
            (N,) each, plain text without any template. An answer may be empty.
        contexts : sequence of str, optional
            (N,), what the prompts are about; an empty one is none.

        Raises
        ------
        ValueError
            If there are not as many of each.
        """
        given = [""] * len(prompts) if contexts is None else list(contexts)
        if not len(prompts) == len(answers) == len(given):
            raise ValueError(
                f"{len(prompts)} prompts, {len(answers)} answers and {len(given)} contexts"
            )
        from fedllm.tasks.preference_asking import Rewarding

        asked = list(zip(prompts, given, answers, strict=True))
        return Rewarding(self.released.model, self.max_length).rewards(asked)
