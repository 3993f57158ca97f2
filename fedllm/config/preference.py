"""How answers that people prefer are learned from."""

from __future__ import annotations

from typing import Literal

from fedllm.config.section import PositiveFloat, Section

Objective = Literal["dpo", "ipo", "hinge", "reward", "selector"]
# They compare the model with the one that the run starts from.
REFERRING: tuple[Objective, ...] = ("dpo", "ipo", "hinge")


class PreferenceSection(Section):
    """What is learned from preferences (task = "preference"), see docs/tasks.md.

    Attributes
    ----------
    objective : {"dpo", "ipo", "hinge", "reward", "selector"}
        "dpo": a model that writes what is preferred (Rafailov et al. 2023); "ipo" (Azar et al.
        2024) and "hinge" (Zhao et al. 2023) are the same with another loss. "reward": a head that
        gives an answer a number (Bradley and Terry 1952), on adapters or, with ``lora.rank = 0``,
        on frozen features. "selector": a model that reads two answers and names the better one
        (FedBis, Wu et al. 2024).
    beta : float
        By what the logarithm of how much likelier an answer has become is multiplied ("dpo", "ipo",
        "hinge"): the smaller, the further the model may go from where the run starts.
    """

    objective: Objective = "dpo"
    beta: PositiveFloat = 0.1

    @property
    def refers(self) -> bool:
        """Whether a loss hangs on the model that the run starts from."""
        return self.objective in REFERRING
