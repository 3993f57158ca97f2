"""A finished run's model, as exports start from it: checked, and on plain float32 weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.config import RunConfig
from fedllm.errors import CheckpointError, ConfigError
from fedllm.models import checkpoints, saved
from fedllm.models.contents import held_as, read_object
from fedllm.models.naming import portable_name, repository_of
from fedllm.models.shared import SharedModel
from fedllm.runs.names import ADAPTER
from fedllm.runs.record import RunFolder, read_run_folder
from fedllm.tasks import task_of


@dataclass(frozen=True, eq=False)
class Released:
    """What a run gave.

    Attributes
    ----------
    run : RunFolder
        The run.
    base : Path
        Folder of its base model.
    model : SharedModel
        Base, adapter and head, in float32 on the processor.
    """

    run: RunFolder
    base: Path
    model: SharedModel

    @property
    def adapter(self) -> Path:
        """Folder of the released adapter."""
        return self.run.path / ADAPTER

    @property
    def repository(self) -> str | None:
        """Where the base model is on a hub, as far as anybody said."""
        return base_repository(self.run.config, self.base)

    @property
    def base_name(self) -> str:
        """What others find the base model by."""
        return portable_name(self.model.files_fingerprint, self.repository)


def quantized_notes(released: Released) -> tuple[str, ...]:
    """Say that the run held the base's weights as integers, where it did: here they are plain."""
    held = released.run.config.model.quantization
    if held == "none":
        return ()
    return (
        f"The run held the base's linear layers as {held}. On the base's own weights, as here, "
        "the model answers a little otherwise than the run measured it.",
    )


def base_repository(config: RunConfig, base: Path | None = None) -> str | None:
    """Return the repository of a run's base model: as the coordinator says, or its folder.

    ``base`` is that folder, where it is not the configuration's.
    """
    said = config.card.base_model if config.card else None
    return said or repository_of(base or Path(config.model.path))


def read_released(folder: Path, base: Path | None = None) -> Released:
    """Load what a finished run gave.

    Parameters
    ----------
    folder : Path
        The run's.
    base : Path, optional
        Of the base model, where it does not lie any more where the run found it.

    Raises
    ------
    ConfigError
        If it is no finished run, or has no adapter, or one of another base model.
    CheckpointError
        If a file is missing or damaged.
    """
    run = read_run_folder(folder)
    adapter = run.path / ADAPTER
    if not (adapter / saved.ABOUT).is_file():
        raise ConfigError(
            f"{folder} holds no released adapter (no {ADAPTER}/{saved.ABOUT})",
            "finish the run with --resume, or give the folder of another one",
        )
    about = read_object(adapter / saved.ABOUT)
    location = str(base) if base is not None else run.config.model.path
    lies = _base_folder(location, base is None)
    found = checkpoints.fingerprints(lies)
    held = held_as(found.current, run.config.model.quantization, run.config.model.precision)
    if about.get("base_fingerprint") not in (held, found.earlier):
        raise CheckpointError(
            f"the adapter in {adapter} was trained on another base model: its fingerprint is "
            f"{about.get('base_fingerprint')!s:.16}, that of {lies} is {held:.16}",
            "name the folder of the model that the run began with, with --base",
        )
    model = _plain_model(run.config, location, about)
    # As checked above: what was trained on rounded weights is put on the weights themselves.
    model.fingerprint = str(about["base_fingerprint"])
    model.load_adapter(adapter)
    model.module.eval()
    return Released(run, lies, model)


def _base_folder(location: str, of_run: bool) -> Path:
    try:
        return checkpoints.checkpoint_folder(location)
    except ConfigError as error:
        raise type(error)(
            error.message,
            "name the folder of the run's base model with --base" if of_run else error.remedy,
        ) from None


def _plain_model(config: RunConfig, location: str, about: dict[str, Any]) -> SharedModel:
    values = {"path": location, "precision": "float32", "quantization": "none", "start": None}
    # Where a head began does not matter any more.
    values["head_start"] = "zero"
    plain = config.model_copy(
        update={
            "model": config.model.model_copy(update=values),
            "engine": config.engine.model_copy(update={"device": "cpu"}),
        }
    )
    labels = about.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(f"{saved.ABOUT} of the adapter has no list of labels")
    return task_of(config).load_model(plain, tuple(labels))
