"""Adapters in folders: what peft loads onto the base, and beside it what it has no place for.

Tensors of the base itself (``lora.method = "bitfit"`` or ``"layers"``) lie there under their names
in the base, so that its ``load_state_dict(tensors, strict=False)`` takes them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as format_safetensors

from fedllm.errors import CheckpointError
from fedllm.files import atomic_directory, write_bytes, write_json
from fedllm.models.contents import read_object
from fedllm.models.core import folded, is_core
from fedllm.models.naming import portable_name
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import TextClassifier

if TYPE_CHECKING:
    from peft import PeftModel

    from fedllm.models.shared import SharedModel

Tensors = dict[str, torch.Tensor]

ABOUT, LORA, LORA_CONFIG, HEAD, CENTER, CORE, OWN, START = (
    "shared_model.json",
    "adapter_model.safetensors",
    "adapter_config.json",
    "head.safetensors",
    "feature_center.safetensors",
    "core.safetensors",
    "base_tensors.safetensors",
    "start.safetensors",
)
_SCALE_SETTINGS = ("r", "lora_alpha", "use_rslora", "use_dora")
_LOG = logging.getLogger(__name__)


def write(model: SharedModel, folder: Path, repository: str | None = None) -> None:
    """Write a model's adapter and head; see `SharedModel.save_adapter`."""
    about = about_of(model)
    with atomic_directory(folder) as new:
        for name, tensors in {**_files(model), **_center(model)}.items():
            write_bytes(new / name, format_safetensors(tensors, {"format": "pt"}))
        if model.peft is not None:
            write_json(new / LORA_CONFIG, lora_config(model, repository))
        write_json(new / ABOUT, about)


def read(model: SharedModel, folder: Path) -> None:
    """Put a saved adapter and head into a model; see `SharedModel.load_adapter`."""
    about = read_object(folder / ABOUT)
    if model.earlier_fingerprint and about.get("base_fingerprint") == model.earlier_fingerprint:
        about["base_fingerprint"] = model.fingerprint
        _LOG.warning(
            "%s names its base model by an earlier kind of fingerprint, which did not cover "
            "all files: it fits this model as far as that tells",
            folder,
        )
    _require_same(folder, about, about_of(model))
    if model.peft is not None:
        # One trained at another scale is another function of the same numbers.
        _require_same(folder, read_object(folder / LORA_CONFIG), scale_settings(model.peft))
    expected = _files(model)
    tensors = {name: read_tensors(folder / name, expected[name]) for name in expected}
    if model.peft is not None:
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model.peft, tensors.get(CORE, tensors[LORA]))
    put_own(model, tensors.get(OWN, {}))
    if START in tensors:
        model.reference.set(tensors[START]["values"].numpy())
    if isinstance(model.module, TextClassifier | TokenClassifier):
        model.module.head.load_state_dict(tensors[HEAD])


def _require_same(folder: Path, told: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if told.get(key) != value:
            raise CheckpointError(
                f"the adapter in {folder} was made for another model: {key} differs",
                "load it with the run.toml that made it",
            )


def own_values(model: SharedModel) -> Tensors:
    """Return what a model trains of the base itself, by its names in the base."""
    return {name: parameter.data for name, parameter in model.own_tensors.items()}


def put_own(model: SharedModel, tensors: Tensors) -> None:
    """Put tensors of the base itself into a model, by their names in the base."""
    with torch.no_grad():
        for name, values in tensors.items():
            model.own_tensors[name].copy_(values)


def scale_settings(peft: PeftModel) -> dict[str, Any]:
    """Return what decides how large an adapter's output is."""
    settings = peft.peft_config["default"].to_dict()
    return {key: settings.get(key) for key in _SCALE_SETTINGS}


def about_of(model: SharedModel) -> dict[str, Any]:
    """Return what must be the same where a saved adapter is loaded."""
    about: dict[str, Any] = {
        "task": model.task,
        "base_fingerprint": model.fingerprint,
        "manifest": model.layout.fingerprint,
        "labels": list(model.labels),
    }
    if model.preference is not None:
        about["objective"] = model.preference.objective
    if isinstance(model.module, TextClassifier):
        about["pooling"] = model.module.pooling
        about["feature_scale"] = model.module.feature_scale
        about["feature_center"] = "zero" if model.module.center is None else "label_names"
    if isinstance(model.module, TokenClassifier):
        about["tagging"] = model.tagging
        about["feature_scale"] = model.module.feature_scale
    return about


def lora_config(model: SharedModel, repository: str | None) -> dict[str, Any]:
    """Return peft's settings of a model's adapter, as plain values in an order of their own.

    Without what is of this machine: the base model has its repository's name, or its fingerprint.
    """
    peft = cast("PeftModel", model.peft)
    settings = peft.peft_config["default"].to_dict()
    settings["base_model_name_or_path"] = portable_name(model.files_fingerprint, repository)
    return cast("dict[str, Any]", _plain(settings))


def _center(model: SharedModel) -> dict[str, Tensors]:
    """Return what is taken off features, for readers without fedllm, who do not make it anew."""
    center = model.module.center if isinstance(model.module, TextClassifier) else None
    return {} if center is None else {CENTER: {"center": center.detach().cpu().contiguous()}}


def _files(model: SharedModel) -> dict[str, Tensors]:
    files: dict[str, Tensors] = {}
    if model.peft is not None:
        from peft import get_peft_model_state_dict

        # Multiplied on the processor, as everywhere.
        adapter = {k: v.detach().cpu() for k, v in get_peft_model_state_dict(model.peft).items()}
        files[LORA] = folded(adapter)
        if is_core(adapter):
            # What is folded cannot be taken apart again.
            files[CORE] = adapter
    if model.own_tensors:
        files[OWN] = own_values(model)
    if isinstance(model.module, TextClassifier | TokenClassifier):
        files[HEAD] = model.module.head.state_dict()
    if model.sent_reference:
        # What the trained adapter is compared with is nowhere else.
        files[START] = {"values": torch.from_numpy(model.reference.values.copy())}
    return {
        name: {key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}
        for name, tensors in files.items()
    }


def _plain(value: Any) -> Any:
    # peft keeps target modules in a set, whose order differs from process to process.
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in sorted(value.items())}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value


def read_tensors(path: Path, expected: Tensors) -> Tensors:
    """Read float32 tensors of the names and shapes that are expected.

    Raises
    ------
    CheckpointError
        If the file is missing or damaged, or holds others, or NaN or infinity.
    """
    tensors = read_any_tensors(path)
    same = tensors.keys() == expected.keys() and all(
        tensors[key].shape == expected[key].shape for key in expected
    )
    if not same:
        raise CheckpointError(f"{path} holds other tensors than this model's adapter")
    return tensors


def read_any_tensors(path: Path) -> Tensors:
    """Read float32 tensors, whichever there are; errors as in `read_tensors`."""
    try:
        tensors = parse_safetensors(path.read_bytes())
    except Exception as error:
        raise CheckpointError(
            f"{path} is missing or damaged: {error}", "use an earlier checkpoint"
        ) from None
    if not all(tensor.dtype == torch.float32 for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds other tensors than this model's adapter")
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        raise CheckpointError(f"{path} holds NaN or infinity", "use an earlier checkpoint")
    return tensors
