"""A finished run's model, as exports start from it: checked, and on plain float32 weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fedllm.config import RunConfig
from fedllm.exporting.found import find_released, load_found
from fedllm.models.naming import portable_name, repository_of
from fedllm.models.shared import SharedModel
from fedllm.runs.names import ADAPTER
from fedllm.runs.record import RunFolder, read_run_folder


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


def read_released(folder: Path, base: str | None = None) -> Released:
    """Load what a finished run gave.

    Parameters
    ----------
    folder : Path
        The run's.
    base : str, optional
        Folder of the base model, where it does not lie any more where the run found it.

    Raises
    ------
    ConfigError
        If it is no finished run, or has no adapter, or one of another base model.
    CheckpointError
        If a file is missing or damaged.
    """
    run = read_run_folder(folder)
    found = find_released(folder, base)
    model = load_found(found, _plain(run.config, found.base))
    model.module.eval()
    return Released(run, found.base, model)


def _plain(config: RunConfig, base: Path) -> RunConfig:
    values = {"path": str(base), "precision": "float32", "quantization": "none", "start": None}
    # Where a head began does not matter any more.
    values["head_start"] = "zero"
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=values),
            "engine": config.engine.model_copy(update={"device": "cpu"}),
        }
    )
