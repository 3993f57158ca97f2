"""Public prompts: read, told from records, and dealt out to learning, choosing and testing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedllm.alignment.evaluation import Prompt
from fedllm.config.alignment import AlignConfig, PromptsSection
from fedllm.data.asked import Asked, read_asked
from fedllm.errors import ConfigError, DataError
from fedllm.randomness import RandomStream


@dataclass(frozen=True)
class PublicPrompts:
    """Prompts, none of which stands in two of the three.

    Attributes
    ----------
    learning, selection, test : list of Prompt
        What is learned with; what a checkpoint is chosen by; what the result is told by.
    repeated : int
        Rows of the file that were left out because an earlier one has the same prompt.
    cut : int
        Prompts that were too long, and lost their beginning.
    """

    learning: list[Prompt]
    selection: list[Prompt]
    test: list[Prompt]
    repeated: int
    cut: int

    def of_step(self, step: int, count: int, seed: int) -> list[Prompt]:
        """Return the prompts of one step: all come once before any comes twice.

        Parameters
        ----------
        step : int
            From 1.
        count : int
            Of one step.
        """
        whole, found = len(self.learning), []
        for place in range((step - 1) * count, step * count):
            order = RandomStream.seeded(seed, "prompts", place // whole).permutation(whole)
            found.append(self.learning[int(order[place % whole])])
        return found


def read_prompts(prompts: PromptsSection) -> list[Asked]:
    """Read the prompts of a file, in its order; see `fedllm.data.asked.read_asked`.

    Raises
    ------
    DataError
        If the file is none of prompts, or not one of them has a context where they should.
    """
    asked = read_asked(prompts.file, prompts.column, None, prompts.context)
    if prompts.context is not None and not any(one.context for one in asked):
        raise DataError(
            f"prompts.context: no row of {prompts.file} has a field {prompts.context!r}",
            "name the column of the contexts, or leave prompts.context out",
        )
    return asked


def deal_out(
    texts: Sequence[str],
    config: AlignConfig,
    tokens_of: Callable[[str], tuple[tuple[int, ...], int]],
) -> PublicPrompts:
    """Deal prompts out, by the configuration's seed.

    Parameters
    ----------
    texts : sequence of str
        As they stand in the file, behind their contexts.
    tokens_of : callable
        Returns a prompt's tokens in the model's template, and how many were cut off.

    Raises
    ------
    ConfigError
        If too few are left to learn with.
    """
    single = list(dict.fromkeys(texts))
    asked, held = config.prompts, config.prompts.selection + config.prompts.test
    least = max(config.training.prompts, 1)
    if len(single) < held + least:
        raise ConfigError(
            f"prompts.file = {asked.file} has {len(single)} different prompts: {held} are held "
            f"out, and a step takes {least}",
            "give more prompts, or lower prompts.selection, prompts.test or training.prompts",
        )
    encoded = [tokens_of(text) for text in single]
    order = RandomStream.seeded(config.seed, "held out").permutation(len(single)).tolist()
    dealt = [Prompt(single[place], encoded[place][0]) for place in order]
    return PublicPrompts(
        learning=dealt[held:],
        selection=dealt[: asked.selection],
        test=dealt[asked.selection : held],
        repeated=len(texts) - len(single),
        cut=sum(cut > 0 for _, cut in encoded),
    )
