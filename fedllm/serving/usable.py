"""What can be asked of a run's model, or of a base model by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm.compression.integers_folder import is_of_integers
from fedllm.config.task import pools_text
from fedllm.data.template import brings_template
from fedllm.errors import ConfigError
from fedllm.models import checkpoints
from fedllm.models.fit import check_length
from fedllm.models.generation import Generator
from fedllm.models.plain import load_plain_model
from fedllm.personal.own_layer import OwnLayer
from fedllm.runs.start import is_released
from fedllm.serving.embedding import Embedding
from fedllm.serving.exported import is_exported, load_exported
from fedllm.serving.released import Released, load_released
from fedllm.tasks import task_of
from fedllm.tasks.prompting import PlainPrompting, Prompt, Prompting, TemplatedPrompting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from fedllm.tasks.predicting import Predicting
    from fedllm.tasks.preference_asking import Judging

# Tokens of prompt and text together of a base model that sets no lower limit.
_MOST_TOKENS = 4096
_NO_LENGTH = (
    "nothing beside the adapter says how long the run's records were: {length} tokens are read "
    "(--max-length)"
)
# Reads a site's own layer for a released model.
OwnLayerOf = Callable[[Released], OwnLayer]


@dataclass(frozen=True, eq=False)
class Usable:
    """A model, and the ways in which it can be asked.

    Attributes
    ----------
    location : Path
        Where it was loaded from.
    what : str
        What it is, in words for messages.
    max_length : int
        Tokens of one text that is labelled, or of a prompt and what is written after it.
    generator : Generator, optional
        Writes; None where the model writes no text.
    prompting : Prompting, optional
        How texts are put to it as it was trained.
    predicting : Predicting, optional
        Labels texts; None where the model has no labels.
    column : str
        Which column of a file has the texts.
    notes : tuple of str
        What whoever asks should know.
    embedding : Embedding, optional
        Makes vectors of texts; None where the model reads no whole texts.
    released : Released, optional
        What it was made of; None of a base model.
    judging : Judging, optional
        Says how good answers are; None where the model does not.
    """

    location: Path
    what: str
    max_length: int
    generator: Generator | None
    prompting: Prompting | None
    predicting: Predicting | None
    column: str
    notes: tuple[str, ...] = ()
    embedding: Embedding | None = None
    released: Released | None = None
    judging: Judging | None = None

    def require_generator(self) -> Generator:
        """Return what writes.

        Raises
        ------
        ConfigError
            If the model writes no text.
        """
        if self.generator is None:
            does = "labels texts" if self.judging is None else "judges answers"
            raise ConfigError(f"{self.what} {does} and writes none", "use `fedllm predict`")
        return self.generator

    def require_predicting(self) -> Predicting:
        """Return what labels texts.

        Raises
        ------
        ConfigError
            If the model has no labels.
        """
        if self.judging is not None:
            raise ConfigError(
                f"{self.what} judges answers and has no labels",
                "use `fedllm predict` with a file of prompts and answers",
            )
        if self.predicting is None:
            raise ConfigError(
                f"{self.what} writes text and has no labels",
                "use `fedllm generate` or `fedllm chat`",
            )
        return self.predicting

    def room_for_prompt(self, new_tokens: int) -> int:
        """Return how long a prompt may be: as in training, half of all tokens at least are its."""
        return self.max_length - min(new_tokens, (self.max_length + 1) // 2)

    def prompt(self, text: str, new_tokens: int, raw: bool = False) -> Prompt:
        """Return the tokens of a prompt, cut where it is too long.

        Parameters
        ----------
        raw : bool
            Whether the text is gone on with as it stands.
        """
        generator = self.require_generator()
        prompting = self.prompting
        if raw or prompting is None:
            prompting = PlainPrompting(generator.tokenizer)
        return prompting.prompt(text, self.room_for_prompt(new_tokens))

    def conversing(self) -> TemplatedPrompting:
        """Return how conversations are put to it: by the run's template, or the base's."""
        if isinstance(self.prompting, TemplatedPrompting):
            return self.prompting
        return TemplatedPrompting(self.require_generator().tokenizer)


def open_usable(
    location: Path,
    base: str | None = None,
    device: str | None = None,
    max_length: int | None = None,
    own_layer: OwnLayerOf | None = None,
) -> Usable:
    """Load a run's model, or a base model.

    Parameters
    ----------
    location : Path
        The folder of a run, of an adapter, or of a base model.
    base, device : str, optional
        See `load_released`.
    max_length : int, optional
        Instead of the run's ``model.max_length``, or what a base model can read.
    own_layer : callable, optional
        Reads the site's own layer, which is put on top.

    Raises
    ------
    FedllmError
        See `load_released` and `load_plain_model`.
    """
    if not is_released(location) and (location / "config.json").exists():
        if own_layer is not None or base is not None:
            raise ConfigError(
                f"{location} is a base model by itself, with no adapter to put on another",
                "give the folder of a run, or leave --base and --kit out",
            )
        if is_exported(location):
            return _exported(location, device, max_length)
        return _plain(location, device, max_length)
    released = load_released(location, base, device, max_length)
    if own_layer is not None:
        layer = own_layer(released)
        released.model.set_adapter(released.model.adapter() + layer.change)
    told = (_NO_LENGTH.format(length=released.config.model.max_length),)
    return _tuned(location, released, () if released.whole or max_length else told)


def _plain(location: Path, device: str | None, max_length: int | None) -> Usable:
    loaded = load_plain_model(str(location), device)
    kind = TemplatedPrompting if brings_template(loaded.tokenizer) else PlainPrompting
    generator = Generator(loaded.network, loaded.tokenizer, _ends(loaded.tokenizer))
    longest = generator.positions
    if max_length is not None and longest is not None and max_length > longest:
        raise ConfigError(
            f"--max-length {max_length}: the model has {longest} positions",
            f"set it to {longest} or less",
        )
    return Usable(
        location,
        f"the base model in {location}",
        max_length or min(longest or _MOST_TOKENS, _MOST_TOKENS),
        generator,
        kind(loaded.tokenizer),
        None,
        "prompt",
    )


def _exported(location: Path, device: str | None, max_length: int | None) -> Usable:
    found = load_exported(location, device)
    task = task_of(found.task)
    how, labelling = task.prompting(), task.predicting()
    length, generator, predicting = max_length or found.max_length, None, None
    _, architecture = checkpoints.read_config(location, integers=is_of_integers(location))
    check_length(architecture, length, "--max-length")
    if found.model is None:
        generator = Generator(found.network, found.tokenizer, _ends(found.tokenizer))
    elif labelling is not None:
        predicting = labelling(found.model, length)
    return Usable(
        location,
        f"the model in {location} ({found.task})",
        length,
        generator,
        None if how is None else how(found.tokenizer),
        predicting,
        found.column,
        embedding=(
            Embedding(found.model, length) if found.model and pools_text(found.task) else None
        ),
    )


def _tuned(location: Path, released: Released, notes: tuple[str, ...]) -> Usable:
    config, model = released.config, released.model
    task = task_of(config)
    how, labelling, judging = task.prompting(), task.predicting(), task.judging()
    length, generator = config.model.max_length, None
    if how is not None:
        # Of one that writes, which the task says.
        module: Any = model.module
        generator = Generator(module.backbone, model.tokenizer, _ends(model.tokenizer))
    return Usable(
        location,
        f"the model in {location} ({config.task})",
        length,
        generator,
        None if how is None else how(model.tokenizer),
        None if labelling is None else labelling(model, length),
        next(iter(task.columns(config.data).values())).name,
        notes,
        Embedding(model, length) if pools_text(config.task) else None,
        released,
        None if judging is None else judging(model, length),
    )


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return what ends a turn, in the model's own template too, and a text."""
    kind = TemplatedPrompting if brings_template(tokenizer) else PlainPrompting
    return kind(tokenizer).ends
