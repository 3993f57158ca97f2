"""What an alignment on public prompts asks for; read from TOML as strictly as a federated run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedllm.config.locations import resolve_location
from fedllm.config.overrides import apply_overrides
from fedllm.config.parsing import parse
from fedllm.config.section import Device, PositiveFloat, PositiveInt, Section
from fedllm.config.toml import read_toml

Algorithm = Literal["ppo", "grpo"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class StartSection(Section):
    """The model that is aligned, which is also the reference that it is held to.

    Attributes
    ----------
    start : str
        Folder of the finished run whose model writes: its base with its adapter.
    base : str, optional
        Folder of its base model, where that does not lie any more where the run found it.
    device : str, optional
        Where it computes: "cpu", "cuda" or "cuda:1" (a GPU), or "auto"; as the run says when left
        out.
    """

    start: str
    base: str | None = None
    device: Device | None = None


class RewardSection(Section):
    """The released reward models.

    Attributes
    ----------
    run : str
        Folder of the finished run whose reward model is learned from.
    base : str, optional
        Folder of that one's base model, where it was moved.
    judge : str, optional
        Folder of another run with a reward model, which is never learned from: it chooses the
        checkpoint that is kept, and tells the win rate. Without one the reward model judges what
        it taught, and the results say so.
    judge_base : str, optional
        Folder of the judge's base model, where it was moved.
    """

    run: str
    base: str | None = None
    judge: str | None = None
    judge_base: str | None = None


class PromptsSection(Section):
    """Public prompts.

    Attributes
    ----------
    file : str
        JSON Lines, CSV or Parquet with ``column``, or plain text, one a line. Prompts alone: a
        file that is a site's, or that holds more than prompts, is refused.
    column : str
        Column of the prompt.
    context : str, optional
        Column of what a prompt is about, which stands before it as in a preference task; a row may
        have none. Left out, a column ``context`` is taken for one of records, and refused.
    selection : int
        So many prompts are held out to choose the checkpoint that is kept.
    test : int
        So many others are held out for the figures of the result, which nothing was chosen by.
    """

    file: str
    column: str = "prompt"
    context: str | None = None
    selection: Annotated[int, Field(ge=4)] = 64
    test: Annotated[int, Field(ge=4)] = 128


class AnswersSection(Section):
    """What is sampled.

    Attributes
    ----------
    new_tokens : int
        Most tokens of an answer; one that comes to it is cut.
    per_prompt : int
        Answers to one prompt in one step: the group of GRPO, which needs 2 at least.
    """

    new_tokens: PositiveInt = 64
    per_prompt: PositiveInt = 8


class StepsSection(Section):
    """How the model is trained.

    Attributes
    ----------
    steps : int
        Each samples answers, and learns from them.
    prompts : int
        Of one step.
    epochs : int
        How often a step's answers are gone through.
    minibatches : int
        Optimiser steps of one pass.
    learning_rate : float
        Of AdamW, for the adapter.
    clip : float
        How far the ratio of new to old probability of a token is followed, from 1.
    gradient_norm : float
        Bound on the L2 norm of an optimiser step's gradient.
    microbatch_size : int
        Answers worked on at once; bounds memory. Four times as many are written at once.
    """

    steps: PositiveInt = 100
    prompts: PositiveInt = 8
    epochs: PositiveInt = 2
    minibatches: PositiveInt = 2
    learning_rate: PositiveFloat = 1e-4
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    gradient_norm: PositiveFloat = 1.0
    microbatch_size: PositiveInt = 16


class ValueSection(Section):
    """The value head of PPO; GRPO has none, and reads nothing of this.

    Attributes
    ----------
    learning_rate : float
        Of AdamW, for the head.
    clip : float
        How far a new value may be from the old one, in standard deviations of the reward.
    gae_lambda : float
        Of generalised advantage estimation: 0 believes the head, 1 the reward alone.
    """

    learning_rate: PositiveFloat = 1e-2
    clip: PositiveFloat = 0.5
    gae_lambda: Share = 0.95


class KlSection(Section):
    """How far the model may go from the one that it starts from, in nats an answer.

    Attributes
    ----------
    coefficient : float
        What a nat costs at least, in standard deviations of the reward.
    target : float, optional
        While answers are farther away than this a nat costs more from step to step; always the
        same when left out.
    ceiling : float
        Training ends where the answers of a step are farther away.
    """

    coefficient: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    target: PositiveFloat | None = 4.0
    ceiling: PositiveFloat = 10.0

    @model_validator(mode="after")
    def _the_target_is_below_the_ceiling(self) -> Self:
        if self.target is not None and self.target >= self.ceiling:
            raise ValueError(
                f"kl.target = {self.target:g} must be smaller than kl.ceiling = {self.ceiling:g}"
            )
        return self


class GuardsSection(Section):
    """What answers get whatever a reward model says of them, and which model is not kept.

    Attributes
    ----------
    minimum_tokens : int
        An answer of fewer tokens gets the floor.
    distinct : float
        An answer of which a smaller share of all runs of four tokens is distinct repeats itself,
        and gets the floor; 0 allows all.
    shared_answers : bool
        Whether prompts may have the same answer, of four tokens or more, in the same words. If not,
        one that was given to another prompt of the step as well counts as repeated.
    floor : float
        Reward of an empty, too short or repeated answer at most, in standard deviations from the
        mean of the starting model's answers.
    cut_penalty : float
        What an answer loses that does not end by itself, in the same unit.
    length_penalty : float
        What an answer loses that is longer than the starting model's on average, for every such
        length that it is longer, in the same unit.
    most_faulty : float
        A model of whose answers a larger share is empty, short or repeated than of the starting
        model's, by more than this, is not kept.
    length_change : float
        A model whose answers are longer or shorter than the starting model's by a larger share is
        not kept.
    """

    minimum_tokens: PositiveInt = 2
    distinct: Share = 0.5
    shared_answers: bool = False
    floor: Annotated[float, Field(lt=0, allow_inf_nan=False)] = -3.0
    cut_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    length_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    most_faulty: Share = 0.02
    length_change: PositiveFloat = 0.2


class SelectionSection(Section):
    """When the model is measured, and when training ends early.

    Attributes
    ----------
    every : int
        Steps between two measurements on the prompts that are held out for it.
    patience : int
        Training ends after so many measurements without a better one.
    """

    every: PositiveInt = 5
    patience: PositiveInt = 6


class AlignConfig(Section):
    """Everything one alignment asks for; see `load_align_config`.

    Attributes
    ----------
    name : str
        What people call it; its folder is ``runs/<name>``.
    seed : int
        Of the answers that are sampled, and of which prompts are held out.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: StartSection
    reward: RewardSection
    prompts: PromptsSection
    answers: AnswersSection = AnswersSection()
    training: StepsSection = StepsSection()
    value: ValueSection = ValueSection()
    kl: KlSection = KlSection()
    guards: GuardsSection = GuardsSection()
    selection: SelectionSection = SelectionSection()


_LOCATIONS = (
    ("model", "start"),
    ("model", "base"),
    ("reward", "run"),
    ("reward", "base"),
    ("reward", "judge"),
    ("reward", "judge_base"),
    ("prompts", "file"),
)


def load_align_config(path: Path, overrides: list[str] | None = None) -> AlignConfig:
    """Read the configuration of an alignment; relative paths count from its folder.

    Raises
    ------
    ConfigError
        If the file or an override is wrong; names each key, the reason and the nearest valid key.
    """
    values = apply_overrides(read_toml(path), overrides or [])
    return parse(AlignConfig, _with_absolute_locations(values, path.parent), str(path))


def _with_absolute_locations(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    result = {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}
    for section, key in _LOCATIONS:
        table = result.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = resolve_location(table[key], folder, f"{section}.{key}")
    return result
