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
from fedllm.config import RunConfig, parse
from fedllm.errors import ConfigError
from fedllm.exporting.found import Found, find_released, load_found
from fedllm.models import saved
from fedllm.models.contents import read_object
from fedllm.models.shared import SharedModel


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
    found = find_released(location, base)
    config = _placed(found.config or _made_up_for(found), found.base, device, max_length)
    torch.set_num_threads(config.engine.threads or torch.get_num_threads())
    model = load_found(found, config)
    method = adapter_of(model)
    adapter = method.held()
    method.place(adapter)
    whole = found.config is not None
    return Released(found.folder, config, model, adapter, found.origin, whole)


def _placed(config: RunConfig, base: Path, device: str | None, max_length: int | None) -> RunConfig:
    engine = (
        config.engine if device is None else config.engine.model_copy(update={"device": device})
    )
    length = max_length or config.model.max_length
    model = config.model.model_copy(update={"path": str(base), "max_length": length})
    return config.model_copy(update={"model": model, "engine": engine})


def _made_up_for(found: Found) -> RunConfig:
    """Return a configuration with which an adapter by itself can be loaded."""
    folder, about = found.folder, found.about
    if (folder / saved.OWN).exists():
        raise ConfigError(
            f"{folder} holds tensors of the base model, and nothing there says which layers they "
            "were trained with",
            "give the run's folder, which has its run.toml",
        )
    quantization, precision = found.held
    model: dict[str, Any] = {"path": str(found.base), "head_start": "zero"}
    model |= {"quantization": quantization, "precision": precision}
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
