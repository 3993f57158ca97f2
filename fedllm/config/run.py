"""What the coordinator asks for in one run, and which sections fit together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fedllm.config.card import CardSection
from fedllm.config.data import DataSection
from fedllm.config.encryption import EncryptionSection
from fedllm.config.engine import EngineSection
from fedllm.config.evaluation import EvaluationSection
from fedllm.config.model import LoraSection, ModelSection
from fedllm.config.preference import PreferenceSection
from fedllm.config.privacy import PrivacySection
from fedllm.config.recipes import with_recipe
from fedllm.config.rounds import RoundsSection
from fedllm.config.section import Section, Task
from fedllm.config.task import (
    labels_records,
    learns_next_tokens,
    learns_preferences,
    pools_text,
    smallest_unit,
    trains_a_head,
)
from fedllm.config.training import TrainingSection
from fedllm.errors import ConfigError
from fedllm.limits import MAX_SITES


class RunConfig(Section):
    """Everything the coordinator asks for in one run; see `load_run_config`.

    Attributes
    ----------
    name : str
        What people call the run; its folder is ``runs/<name>``.
    task : {"classification", "instruction", "causal", "token_classification", "preference"}
        A label for each text; an answer to each prompt; each text, token by token; the parts of
        each text that have a label, such as names; or which of several answers people prefer.
    seed : int
        Of what is public: adapters before training, and how a simulation deals records out.
        Batches and noise of private runs follow from no seed.
    complete : bool
        Whether the file says everything, as ``run.toml`` of a run's folder does; what it leaves out
        stands then at the section's default. Otherwise the recipe fills it.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    task: Task
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    complete: Annotated[bool, Field(strict=True)] = True
    model: ModelSection
    data: DataSection
    preference: PreferenceSection = PreferenceSection()
    lora: LoraSection = LoraSection()
    rounds: RoundsSection = RoundsSection()
    training: TrainingSection = TrainingSection()
    privacy: PrivacySection = PrivacySection()
    encryption: EncryptionSection = EncryptionSection()
    evaluation: EvaluationSection = EvaluationSection()
    engine: EngineSection = EngineSection()
    card: CardSection | None = None

    @property
    def averages_factors(self) -> bool:
        """Whether both factors of products are averaged that sites moved several times.

        Then the mean of the products is not the product of the means. With one step a round the
        coordinator's step is that of one party with all records, and where one factor stays
        nothing is lost. Of unequal ranks nothing is said: there is no one mean of all sites.
        """
        lora = self.lora
        both = lora.kind == "lora" and lora.rank > 0 and not lora.ranks
        return both and self.training.local_steps > 1

    @model_validator(mode="before")
    @classmethod
    def _what_nobody_said(cls, values: Any) -> Any:
        return with_recipe(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        self._something_can_be_trained()
        self._steps_leave_something()
        self._preferences_are_asked_for()
        self._label_names_are_texts()
        if self.privacy.noise == "distributed":
            if self.privacy.unit == "record":
                self._sends_one_gradient()
            if self.private and not self.encryption.masked:
                raise ValueError(
                    "privacy.noise = 'distributed' needs masks: an update that somebody can open "
                    "has one site's share of the noise alone; set encryption.scheme = 'bfv' and "
                    "encryption.masks = true, or privacy.noise = 'local'"
                )
            if self.privacy.colluders >= self.rounds.min_sites:
                raise ValueError(
                    f"privacy.colluders = {self.privacy.colluders} must be smaller than "
                    f"rounds.min_sites = {self.rounds.min_sites}"
                )
        if self.evaluation.every:
            if self.encryption.scheme == "ckks":
                raise ValueError("evaluation.every needs exact sums: encryption.scheme = 'bfv'")
            if self.privacy.epsilon is not None and (
                self.evaluation.epsilon >= self.privacy.epsilon
            ):
                raise ValueError(
                    f"evaluation.epsilon = {self.evaluation.epsilon:g} must be smaller than "
                    f"privacy.epsilon = {self.privacy.epsilon:g}, of which it is a part"
                )
        if self.evaluation.parts == "label" and not labels_records(self.task):
            raise ValueError(
                f"evaluation.parts = 'label' needs one label for each record, and task = "
                f"{self.task!r} has none: take evaluation.parts = 'group', or leave it out"
            )
        if self.privacy.distribution == "discrete_gaussian":
            self._discrete_noise_fits()
        if self.privacy.clipping_quantile is not None:
            self._clipping_may_move()
        if self.privacy.unit == "site" and self.evaluation.every:
            raise ValueError(
                "evaluation.every does not go with privacy.unit = 'site': its noise hides single "
                "records"
            )
        if self.data.site is None and self.rounds.min_sites > self.data.sites:
            raise ValueError(
                f"rounds.min_sites = {self.rounds.min_sites} is larger than "
                f"data.sites = {self.data.sites}: no round could be opened; lower the first or "
                "raise the second"
            )
        return self

    def require_room(self, sites: int) -> None:
        """Refuse a run whose largest sum would hold more sites than any parameters have room for.

        Parameters
        ----------
        sites : int
            Those that take part.

        Raises
        ------
        ConfigError
            If a round, or an evaluation at the sites, would have too many.
        """
        drawn = self.rounds.sites is not None and not self.evaluation.every
        if sites > MAX_SITES and not drawn:
            raise ConfigError(
                f"{sites} sites take part, and one sum holds at most {MAX_SITES}",
                f"set rounds.sites = {MAX_SITES} or less, so that each round is for some of them, "
                "without evaluation.every",
            )

    def _something_can_be_trained(self) -> None:
        if self.lora.rank == 0 and not self.trains_a_head:
            raise ValueError("lora.rank = 0 leaves nothing to train in this task")
        if self.lora.ranks and (self.privacy.noise != "local" or self.privacy.unit == "site"):
            raise ValueError(
                "lora.ranks needs the size that sites announce, which they do with "
                "privacy.noise = 'local' and a unit below the site: leave one of them out"
            )
        if self.lora.trains_base and self.model.precision != "float32":
            raise ValueError(
                f"lora.method = {self.lora.method!r} trains tensors of the base model, which needs "
                f"them in float32: leave out model.precision = {self.model.precision!r}, or take "
                "an adapter"
            )
        if self.lora.trains_base and self.model.quantization != "none":
            raise ValueError(
                f"lora.method = {self.lora.method!r} trains tensors of the base model, and "
                f"model.quantization = {self.model.quantization!r} rounds them to integers, which "
                "have no gradient: leave model.quantization out, or take an adapter"
            )

        if self.training.sampled_words is not None and not learns_next_tokens(self.task):
            raise ValueError(
                "training.sampled_words is for tasks whose losses are of next tokens alone, and "
                f"task = {self.task!r} is none: leave it out"
            )

    def _label_names_are_texts(self) -> None:
        nameless = self.trains_a_head and not pools_text(self.task)
        for key in ("head_start", "feature_center"):
            if nameless and getattr(self.model, key) != "zero":
                raise ValueError(
                    f"model.{key} = 'label_names' compares texts with the labels' names, and this "
                    "task gives whole texts no label: leave it out"
                )

    def _preferences_are_asked_for(self) -> None:
        if self.preferences is None and self.preference != PreferenceSection():
            raise ValueError(
                f"preference says how preferences are learned, and task = {self.task!r} has none: "
                "leave it out, or take the task that learns them"
            )

    def _steps_leave_something(self) -> None:
        if self.rounds.optimizer != "muon":
            return
        for name in ("learning_rate", "head_learning_rate"):
            if (rate := getattr(self.rounds, name) or 0.0) >= 1.0:
                raise ValueError(
                    f"rounds.{name} = {rate:g} with rounds.optimizer = 'muon' moves every value so "
                    "far in each round; set something like 0.005"
                )

    def _sends_one_gradient(self) -> None:
        if self.training.local_steps != 1:
            raise ValueError(
                "privacy.noise = 'distributed' needs training.local_steps = 1, and not "
                f"{self.training.local_steps}"
            )
        if self.training.optimizer != "sgd":
            raise ValueError(
                "privacy.noise = 'distributed' needs training.optimizer = 'sgd': "
                "the site sends its gradient, the coordinator takes the step"
            )
        if self.training.sampling_rate is None:
            raise ValueError(
                "privacy.noise = 'distributed' needs training.sampling_rate: it must be "
                "public and the same at every site"
            )

    def _clipping_may_move(self) -> None:
        if self.privacy.noise != "local" or self.privacy.unit != "record":
            raise ValueError(
                "privacy.clipping_quantile needs privacy.noise = 'local' and unit 'record': "
                "each site follows its own gradients"
            )
        if self.training.optimizer != "adam":
            raise ValueError(
                "privacy.clipping_quantile needs training.optimizer = 'adam', whose steps have a "
                "bound whatever the clipping norm becomes"
            )

    def _discrete_noise_fits(self) -> None:
        training = self.training
        if self.privacy.unit == "site":
            raise ValueError(
                "privacy.distribution = 'discrete_gaussian' needs privacy.unit = 'record'"
            )
        if self.privacy.noise != "distributed":
            raise ValueError(
                "privacy.distribution = 'discrete_gaussian' needs privacy.noise = 'distributed'"
            )
        if {training.learning_rate, training.head_learning_rate or 1.0} != {1.0}:
            raise ValueError(
                "privacy.distribution = 'discrete_gaussian' needs training.learning_rate = 1: "
                "the site sends its sum, the coordinator takes the step"
            )

    @property
    def site_data(self) -> DataSection:
        """Columns of a simulation's training records.

        ``data.group`` is among them only where sites tell of groups; else it is a column of the
        public test file alone.
        """
        if self.evaluation.parts == "group":
            return self.data
        return self.data.model_copy(update={"group": None})

    @property
    def trains_a_head(self) -> bool:
        """Whether something is trained beside the adapters."""
        return trains_a_head(self.task, self.preference.objective)

    @property
    def preferences(self) -> PreferenceSection | None:
        """How preferences are learned; None in a task that learns something else."""
        return self.preference if learns_preferences(self.task) else None

    @property
    def refers_to_start(self) -> bool:
        """Whether losses hang on an earlier run's adapter, which sites have to be sent then."""
        learned = self.preferences
        return learned is not None and learned.refers and self.model.start is not None

    @property
    def private(self) -> bool:
        """Whether the run promises differential privacy."""
        return self.privacy.epsilon is not None

    @property
    def unit(self) -> Literal["record", "person", "site"]:
        """What one unit of privacy protects."""
        if self.privacy.unit == "site":
            return "site"
        return smallest_unit(self.task) if self.data.unit is None else "person"
