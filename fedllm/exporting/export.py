"""Write what a run gave in a format that tools without fedllm read; checked before it stands."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, get_args

from fedllm.errors import ConfigError
from fedllm.exporting.card import Handed, write_card
from fedllm.exporting.gguf_format import write_gguf
from fedllm.exporting.kinds import kind_of
from fedllm.exporting.merged import write_merged
from fedllm.exporting.onnx_format import write_onnx
from fedllm.exporting.peft_format import write_peft
from fedllm.exporting.probe import answers, make_probe
from fedllm.exporting.released import Released, base_repository, read_released
from fedllm.exporting.script_base import weights_digest
from fedllm.exporting.scripts import SCRIPT, released_use, script
from fedllm.exporting.written import Settings, Written
from fedllm.files import atomic_directory, require_new, write_bytes
from fedllm.models.about import licence_of
from fedllm.models.checkpoints import checkpoint_folder
from fedllm.models.exported import write_exported
from fedllm.models.naming import portable_name
from fedllm.models.shared import SharedModel
from fedllm.runs.names import ADAPTER
from fedllm.runs.record import read_run_folder
from fedllm.tasks import task_of

Format = Literal["peft", "merged", "onnx", "gguf"]
WITH_DTYPE: tuple[Format, ...] = ("merged", "gguf")
FORMATS: tuple[Format, ...] = get_args(Format)

_WRITERS: dict[Format, Callable[[Released, Path, Settings], Written]] = {
    "peft": write_peft,
    "merged": write_merged,
    "onnx": write_onnx,
    "gguf": write_gguf,
}


def export(
    run: Path, out: Path, form: Format, base: str | None = None, dtype: str | None = None
) -> Written:
    """Export a finished run's model, and check that it answers as the run's own.

    Parameters
    ----------
    run : Path
        The run's folder.
    out : Path
        The new folder; must not be there.
    form : str
        One of `FORMATS`.
    base : str, optional
        Folder of the base model, where it was moved.
    dtype : str, optional
        In which whole checkpoints keep their weights: as the base does when left out.

    Raises
    ------
    ConfigError, CheckpointError
        If there is nothing to export, or not in this format; says which fit.
    TrainingError
        If what was written answers otherwise; nothing is left of the folder.
    StorageError
        If the disk is full; nothing is left of the folder.
    """
    require_new(out)
    if dtype is not None and form not in WITH_DTYPE:
        raise ConfigError(
            f"--dtype says how whole weights are kept, and --format {form} has none",
            f"leave --dtype out, or take --format {' or '.join(WITH_DTYPE)}",
        )
    released = read_released(run, base)
    if judges(released.model):
        raise ConfigError(
            "a model that judges answers has no form that other tools know how to ask",
            "ask it by `fedllm predict`, or in Python by fedllm.serving.reward.RewardModel",
        )
    probe = make_probe(released)
    settings = Settings(probe, answers(released, probe), dtype)
    with atomic_directory(out) as new:
        written = _WRITERS[form](released, new, settings)
        describe(released, new, form, written)
    return written


def judges(model: SharedModel) -> bool:
    """Tell whether a model says how good answers are, and neither writes nor gives labels."""
    return model.preference is not None and not model.preference.refers


def describe(released: Released, folder: Path, form: str, written: Written) -> None:
    """Write beside a model the script that uses it, its card, and what the folder consists of."""
    config = released.run.config
    text = written.script
    if written.use is not None:
        text = script(released.model, config, written.use)
    if text:
        write_bytes(folder / SCRIPT, text.encode())
    handed = Handed(
        library=written.library,
        what=written.what,
        base_name=released.base_name,
        repository=released.repository,
        licence=licence_of(released.base),
        script=text,
        notes=written.notes,
        smaller=written.smaller,
    )
    write_card(folder, released.run, handed)
    read = task_of(config).columns(config.data)
    columns = {role: column.name for role, column in read.items()}
    asked = {
        "task": config.task,
        "max_length": config.model.max_length,
        "column": next(iter(columns.values())),
        "columns": columns,
    }
    write_exported(folder, form, asked)


def write_released_card(folder: Path, model: SharedModel) -> Path:
    """Write the card of a run that has just ended into its adapter's folder.

    Parameters
    ----------
    folder : Path
        The run's, with all that it leaves.
    model : SharedModel
        Of its kind; the base's folder need not be there any more.
    """
    run = read_run_folder(folder)
    repository = base_repository(run.config)
    licence, fast, weights = "", True, ""
    with suppress(ConfigError, OSError):
        base = checkpoint_folder(run.config.model.path)
        licence, fast = licence_of(base), (base / "tokenizer.json").is_file()
        weights = weights_digest(base)
    handed = Handed(
        library="transformers" if model.peft is None else "peft",
        what=_what(model),
        base_name=portable_name(model.files_fingerprint, repository),
        repository=repository,
        licence=licence,
        script=""
        if judges(model)
        else script(model, run.config, released_use(model, run.config, fast, weights)),
    )
    return write_card(folder / ADAPTER, run, handed)


def _what(model: SharedModel) -> str:
    parts = ["An adapter in peft's format"] if model.peft is not None else []
    parts += ["Trained tensors of the base model itself"] if model.own_tensors else []
    parts += ["the head that was trained"] if kind_of(model).head else []
    words = " and ".join(parts)
    return f"{words[:1].upper()}{words[1:]}."
