"""Load what a run released: its base model with the adapter, and the head, in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedllm.adapters import adapter_of
from fedllm.config import ModelSection, Precision, Quantization, RunConfig, parse
from fedllm.errors import CheckpointError, ConfigError
from fedllm.models import checkpoints, saved
from fedllm.models.contents import held_as, read_object
from fedllm.models.naming import cached_folder, is_repository
from fedllm.models.shared import SharedModel
from fedllm.runs.names import RUN_TOML
from fedllm.runs.record import read_config
from fedllm.runs.start import find_start
from fedllm.tasks import task_of

# How a base may be held where its fingerprint says so.
_ROUNDED: tuple[tuple[Quantization, Precision], ...] = (
    ("int8", "float32"),
    ("int8", "bfloat16"),
    ("int4", "float32"),
    ("int4", "bfloat16"),
)


@dataclass(frozen=True, eq=False)
class Released:
    """A finished run's model, as everybody may have it.

    Attributes
    ----------
    folder : Path
        The adapter's.
    config : RunConfig
        The run's, with the base model where it lies here.
    model : SharedModel
        Holds the adapter.
    adapter : float32 array (D,)
        What the run released.
    about : mapping
        ``adapter`` (SHA-256 of its files), and ``run``, ``run_id``, ``epsilon`` and ``delta``
        where it lies in the run's folder.
    whole : bool
        Whether the run's own configuration was there; else what it says not to load the adapter,
        such as ``model.max_length``, is at its default.
    """

    folder: Path
    config: RunConfig
    model: SharedModel
    adapter: NDArray[np.float32]
    about: Mapping[str, Any]
    whole: bool = True


def load_released(
    location: Path,
    base: str | None = None,
    device: str | None = None,
    max_length: int | None = None,
) -> Released:
    """Load a run's model.

    Parameters
    ----------
    location : Path
        The folder of a finished run, or its folder ``adapter``, perhaps by itself.
    base : str, optional
        The base model's folder, where it is not the one that the run names.
    device : str, optional
        Where it computes; as the run says when left out.
    max_length : int, optional
        Instead of the run's ``model.max_length``.

    Raises
    ------
    ConfigError
        If there is no released adapter, or no base model where it should be.
    CheckpointError
        If a file is missing or damaged, the base is another model than the adapter's, or the
        labels do not fit the head.
    """
    found = find_start(str(location), "RUN")
    about = read_object(found.folder / saved.ABOUT)
    config = _config_beside(found.folder)
    whole = config is not None
    given = base if base is not None else _base_of(config, found.folder)
    folder = checkpoints.checkpoint_folder(given)
    if config is None:
        config = _made_up_for(found.folder, about, given)
    elif base is not None:
        _require_base(found.folder, about, folder, config.model)
    config = _placed(config, given, device, max_length)
    torch.set_num_threads(config.engine.threads or torch.get_num_threads())
    labels = _labels(found.folder, about, config)
    model = task_of(config).load_model(config, labels)
    _require_same(found.folder, about, folder, model.fingerprint, model.earlier_fingerprint)
    if not whole:
        _train_as(model, about)
    model.load_adapter(found.folder)
    if model.method == "eva":
        # Nothing trains its A, and the texts that it was made of need not be here.
        model.begin_with(model.tensors.only("A"))
    method = adapter_of(model)
    adapter = method.held()
    method.place(adapter)
    return Released(found.folder, config, model, adapter, found.about, whole)


def is_released(location: Path) -> bool:
    """Tell whether a folder is a run's or an adapter's, and no base model's."""
    return (location / RUN_TOML).exists() or any(
        (folder / saved.ABOUT).exists() for folder in (location, location / "adapter")
    )


def _config_beside(folder: Path) -> RunConfig | None:
    """Return the configuration of the run that an adapter lies in."""
    for place in (folder.parent, folder):
        if (place / RUN_TOML).exists():
            return read_config(place)
    return None


def _base_of(config: RunConfig | None, folder: Path) -> str:
    """Return where the base lies: as the run says, or by its repository in the hub's cache."""
    named: object = None
    if (folder / saved.LORA_CONFIG).exists():
        named = read_object(folder / saved.LORA_CONFIG).get("base_model_name_or_path")
    elif config is not None and config.card is not None:
        named = config.card.base_model
    repository = named if isinstance(named, str) and is_repository(named) else None
    place = named if config is None else config.model.path
    if isinstance(place, str) and (place.startswith("package:") or Path(place).is_dir()):
        return place
    if repository is not None and (cached := cached_folder(repository)) is not None:
        return str(cached)
    there = f"; the run's was {place}" if place and place != repository else ""
    if repository is None:
        raise ConfigError(
            f"the base model of the adapter in {folder} is not on this machine where it was{there}",
            "name its folder with --base",
        )
    raise ConfigError(
        f"the base model of the adapter in {folder}, {repository}, is not in this machine's hub "
        f"cache{there}",
        f"put it there where there is a network (hf download {repository}), or name its folder "
        "with --base; fedllm fetches nothing",
    )


def _placed(config: RunConfig, base: str, device: str | None, max_length: int | None) -> RunConfig:
    engine = (
        config.engine if device is None else config.engine.model_copy(update={"device": device})
    )
    length = max_length or config.model.max_length
    model = config.model.model_copy(update={"path": base, "max_length": length})
    return config.model_copy(update={"model": model, "engine": engine})


def _labels(folder: Path, about: Mapping[str, Any], config: RunConfig) -> tuple[str, ...]:
    """Return the labels in the head's order; there are as many as it has outputs for."""
    labels = about.get("labels") or []
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise CheckpointError(
            f"{folder / saved.ABOUT} is damaged: its labels are no list of texts",
            "copy the adapter's folder again",
        )
    if len(set(labels)) < len(labels):
        raise CheckpointError(
            f"{folder / saved.ABOUT} names a label twice", "copy the adapter's folder again"
        )
    if (folder / saved.HEAD).exists():
        head = task_of(config).head(tuple(labels))
        wanted = getattr(head, "outputs", len(labels))
        held = len(next(iter(saved.read_any_tensors(folder / saved.HEAD).values())))
        if held != wanted:
            raise CheckpointError(
                f"the labels in {folder / saved.ABOUT} do not fit the head beside it: "
                f"{len(labels)} labels need {wanted} outputs, and it has {held}",
                "copy the adapter's folder again, as the run wrote it",
            )
    return tuple(labels)


def _require_base(folder: Path, about: Mapping[str, Any], base: Path, model: ModelSection) -> None:
    """Refuse another base model before it is loaded, which may fail in other words."""
    prints = checkpoints.fingerprints(base)
    held = held_as(prints.current, model.quantization, model.precision)
    _require_same(folder, about, base, held, prints.earlier)


def _require_same(
    folder: Path, about: Mapping[str, Any], base: Path, current: str, earlier: str
) -> None:
    told = about.get("base_fingerprint")
    if told not in (current, earlier or current):
        raise CheckpointError(
            f"the adapter in {folder} is of another base model: it was trained on one with the "
            f"fingerprint {str(told)[:16]}, and that in {base} has {current[:16]}",
            "name the folder of the base model that the run used with --base (fedllm model show "
            "tells a folder's fingerprint)",
        )


def _made_up_for(folder: Path, about: Mapping[str, Any], base: str) -> RunConfig:
    """Return a configuration with which an adapter by itself can be loaded."""
    if (folder / saved.OWN).exists():
        raise ConfigError(
            f"{folder} holds tensors of the base model, and nothing there says which layers they "
            "were trained with",
            "give the run's folder, which has its run.toml",
        )
    prints = checkpoints.fingerprints(Path(checkpoints.checkpoint_folder(base)))
    told = about.get("base_fingerprint")
    held = next((one for one in _ROUNDED if told == held_as(prints.current, *one)), None)
    current = held_as(prints.current, *held) if held else prints.current
    _require_same(folder, about, Path(base), current, prints.earlier)
    model: dict[str, Any] = {"path": base, "head_start": "zero"}
    if held:
        model |= {"quantization": held[0], "precision": held[1]}
    model |= {key: about[key] for key in ("feature_scale", "feature_center") if key in about}
    if about.get("pooling") in ("mean", "cls"):
        model["pooling"] = about["pooling"]
    values = {
        "name": "adapter",
        "task": about.get("task"),
        "model": model,
        "data": {"train": "none", "labels": about.get("labels") or None},
        **({"preference": {"objective": about["objective"]}} if "objective" in about else {}),
        "lora": _lora_of(folder),
    }
    return parse(RunConfig, values, str(folder / saved.ABOUT))


def _lora_of(folder: Path) -> dict[str, Any]:
    if not (folder / saved.LORA_CONFIG).exists():
        return {"rank": 0}
    told = read_object(folder / saved.LORA_CONFIG)
    method = "core" if (folder / saved.CORE).exists() else "lora"
    return {
        "rank": told.get("r"),
        "alpha": told.get("lora_alpha"),
        "target_modules": told.get("target_modules"),
        "method": method,
    }


def _train_as(model: SharedModel, about: Mapping[str, Any]) -> None:
    """Take the adapter for what its run's method trains first, which decides about its layout."""
    for part in (model.tensors.only("B", "head"), model.tensors.only("A", "B", "head")):
        if part.fingerprint == about.get("manifest"):
            model.layout = part
            model.train_only(part)
