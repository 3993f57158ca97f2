"""A run's first adapter, taken from what an earlier run released (``model.start``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fedllm.errors import ConfigError
from fedllm.models import saved
from fedllm.models.contents import read_object
from fedllm.models.saved import CORE, HEAD, LORA, OWN, Tensors
from fedllm.models.shared import SharedModel
from fedllm.models.token_head import TokenClassifier
from fedllm.models.transformer import TextClassifier

if TYPE_CHECKING:
    from peft import PeftModel

_WRAPPED = "base_model.model."
# What a saved adapter says of itself that is not about its head.
_OF_THE_ADAPTER = {"base_fingerprint", "manifest"}
# Every party has the A of these from the run's seed, and none of them is sent one.
_A_FROM_SEED = ("ffa", "ffa_orthonormal")


def take_over(model: SharedModel, folder: Path) -> bool:
    """Put an earlier run's adapter into a model, and its head where that fits.

    A head fits a run of the same task with the same labels and features; another starts anew.

    Returns
    -------
    bool
        Whether the head, too, was taken over.

    Raises
    ------
    ConfigError
        If it is an adapter of another base model, shape or scale; names what differs.
    CheckpointError
        If a file is missing or damaged.
    """
    about = read_object(folder / saved.ABOUT)
    fits = (model.fingerprint, model.earlier_fingerprint or model.fingerprint)
    _require(
        about.get("base_fingerprint") in fits,
        folder,
        f"the base model: its adapter is for {str(about.get('base_fingerprint'))[:16]}, model.path "
        f"and model.quantization make {model.fingerprint[:16]}",
        "set model.path to the base model of that run, and model.quantization as it has it",
    )
    there, here = (
        _adapted_by((folder / LORA).exists(), (folder / OWN).exists()),
        _adapted_by(model.peft is not None, bool(model.own_tensors)),
    )
    _require(
        there == here,
        folder,
        f"lora.method or lora.rank: it trained {there}, and this run trains {here}",
        "start from a run that adapts the same layers in the same way",
    )
    if model.peft is not None:
        _take_adapter(model, model.peft, folder)
    elif model.own_tensors:
        found = saved.read_any_tensors(folder / OWN)
        saved.put_own(model, _renamed(found, saved.own_values(model), folder))
    if not isinstance(model.module, TextClassifier | TokenClassifier):
        return False
    wanted = saved.about_of(model)
    of_the_head = wanted.keys() - _OF_THE_ADAPTER
    if any(about.get(key) != wanted[key] for key in of_the_head) or not (folder / HEAD).exists():
        return False
    model.module.head.load_state_dict(
        saved.read_tensors(folder / HEAD, model.module.head.state_dict())
    )
    return True


def _adapted_by(peft: bool, own: bool) -> str:
    if peft:
        return "adapters"
    return "tensors of the base itself" if own else "a head alone"


def _take_adapter(model: SharedModel, peft: PeftModel, folder: Path) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = get_peft_model_state_dict(peft)
    told, wanted = read_object(folder / saved.LORA_CONFIG), saved.scale_settings(peft)
    keys = {"r": "lora.rank", "lora_alpha": "lora.alpha"}
    for key, value in wanted.items():
        _require(
            told.get(key) == value,
            folder,
            f"{keys.get(key, key)}: {told.get(key)} there, {value} here",
            "set it to what that run has",
        )
    core = model.method == "core"
    _require(
        not core or (folder / CORE).exists(),
        folder,
        "lora.method: a core has a basis of its own, and that adapter none",
        "take another lora.method, or start from a run with lora.method = 'core'",
    )
    name = CORE if core else LORA
    found = _renamed(saved.read_any_tensors(folder / name), own, folder)
    if model.method in _A_FROM_SEED:
        same = all(torch.equal(found[k], v.cpu()) for k, v in own.items() if "lora_A" in k)
        _require(
            same,
            folder,
            f"A: with lora.method = {model.method!r} it is never sent, and has to be the one that "
            "every party makes of this run's seed",
            "give the seed and the lora.method of that run, or take 'fedsvd', 'rolora' or 'lora'",
        )
    set_peft_model_state_dict(peft, found)


def _renamed(found: Tensors, wanted: Tensors, folder: Path) -> Tensors:
    """Return tensors under this model's names, which begin otherwise in another task."""
    result = {}
    for name, values in wanted.items():
        match = [other for other in found if _same_place(name, other)]
        _require(
            len(match) == 1 and len(found) == len(wanted),
            folder,
            f"the adapted layers: {len(found)} tensors there, {len(wanted)} here"
            + ("" if match else f", and there is no {name}"),
            "set lora.target_modules and lora.last_layers as that run has them",
        )
        _require(
            found[match[0]].shape == values.shape,
            folder,
            f"the shape of {name}",
            "start from a run on the same base model",
        )
        result[name] = found[match[0]]
    return result


def _same_place(one: str, other: str) -> bool:
    one, other = one.removeprefix(_WRAPPED), other.removeprefix(_WRAPPED)
    return one == other or one.endswith(f".{other}") or other.endswith(f".{one}")


def _require(holds: bool, folder: Path, what: str, remedy: str) -> None:
    if not holds:
        raise ConfigError(f"model.start = {folder} differs from this run in {what}", remedy)
