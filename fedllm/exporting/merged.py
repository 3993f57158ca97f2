"""A whole checkpoint of transformers, what was trained added into its weights.

Added in float32, whatever the weights are kept in; then the folder is loaded back and compared
with base and run. Tools that add an adapter into rounded weights have lost it without a word.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedllm.exporting.effect import Effect
from fedllm.exporting.kinds import kind_of
from fedllm.exporting.peft_format import LABELS, written_head
from fedllm.exporting.probe import REMEDY, Probe, head_answers, language_answers, require_same
from fedllm.exporting.released import Released, quantized_notes
from fedllm.exporting.scripts import Use
from fedllm.exporting.standard_head import StandardHead, standard_head, with_standard_head
from fedllm.exporting.written import Settings, Written
from fedllm.files import share_as_new, write_bytes, write_json
from fedllm.models import checkpoints, saved
from fedllm.models.about import LICENCE_FILE, stored_as
from fedllm.models.core import folded
from fedllm.models.lora import lora_layers

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEAD_ABOUT = "head.json"
_STORED = {"BF16": "bfloat16", "F16": "float16"}
_SHARD = "5GB"
# Weights of float32 differ from base and adapter by rounding alone.
_MOST = 1e-3
_COPIED = re.compile(
    r"tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\..*|generation_config\.json|.*(vocab|merges|spm|bpe).*\.(txt|json|model)"
    r"|.*\.model|tekken.*|.*tiktoken.*",
    re.IGNORECASE,
)


def write_merged(released: Released, folder: Path, settings: Settings) -> Written:
    """Write a whole checkpoint into an empty folder.

    Raises
    ------
    TrainingError
        If its weights are the base's own, or it answers otherwise than the run's own model.
    """
    kind, standard = kind_of(released.model), standard_head(released)
    dtype = settings.dtype or kept_in(released.base)
    effect = settings.effect or Effect.of(released, settings.probe, settings.wanted)
    write_checkpoint(released, folder, standard, dtype, settings.reshaped)
    if kind.head is not None and standard is None:
        write_head(released, folder)
    copy_beside(released.base, folder)
    use = Use(
        kind.auto if standard is None else standard.auto,
        base=False,
        adapter=False,
        plain_head=kind.head is not None and standard is None,
        about=LABELS if standard is not None else HEAD_ABOUT,
        fast=(folder / "tokenizer.json").is_file(),
    )
    found = read_back(released, folder, standard, settings.probe)
    largest = compare(dtype, found, settings, effect)
    head = " and, beside it, the head that the run trained" if use.plain_head else ""
    notes = (standard.note,) if standard is not None and standard.note else ()
    return Written(
        library="transformers",
        what=f"A whole checkpoint of transformers ({use.auto}), weights in {dtype}{head}.",
        largest=largest,
        use=use,
        notes=notes + quantized_notes(released),
    )


def kept_in(base: Path) -> str:
    """Return in what most of a base model's numbers are stored, as torch calls it."""
    stored = stored_as(base)
    return _STORED.get(max(stored, key=lambda kind: stored[kind]), "float32")


@torch.no_grad()
def write_checkpoint(
    released: Released,
    folder: Path,
    standard: StandardHead | None,
    dtype: str,
    reshaped: Mapping[str, Any],
) -> None:
    """Write config and weights; the run's model is whole and plain from here on."""
    plain = merged_base(released)
    config = type(plain.config).from_pretrained(released.base, local_files_only=True)
    for key, value in reshaped.items():
        setattr(config, key, value)
    for parameter in plain.parameters():
        parameter.data = parameter.data.type(DTYPES[dtype])
    whole: Any = plain
    if standard is not None:
        config.num_labels = standard.outputs
        config.id2label = dict(enumerate(_names(released, standard)))
        config.label2id = {name: place for place, name in config.id2label.items()}
        whole = with_standard_head(standard, plain, config, DTYPES[dtype])
        write_json(folder / LABELS, {"labels": list(released.model.labels)})
    whole.config = config
    with checkpoints.quietly():
        whole.save_pretrained(folder, max_shard_size=_SHARD)
        share_as_new(folder, "*.safetensors")


@torch.no_grad()
def merged_base(released: Released) -> PreTrainedModel:
    """Return the base with all that was trained of it in its weights, float32.

    The run's own model has no adapter any more from here on.
    """
    peft = released.model.peft
    if peft is None:
        return released.model.module.backbone  # type: ignore[no-any-return]
    from peft import get_peft_model_state_dict

    tensors = folded(get_peft_model_state_dict(peft))
    changes = {name: _change(name, part, tensors) for name, part in lora_layers(peft).items()}
    plain = cast(PreTrainedModel, peft.unload())
    for name, change in changes.items():
        layer: Any = plain.get_submodule(name.removeprefix("base_model.model."))
        layer.weight.add_(change.T if isinstance(layer, Conv1D) else change)
    return plain


def _change(name: str, layer: LoraLayer, tensors: dict[str, Tensor]) -> Tensor:
    """Return what an adapter adds to a layer's weights, (outputs, inputs)."""
    into, out = (tensors[f"{name}.lora_{side}.weight"].float() for side in "AB")
    return layer.scaling["default"] * (out @ into)


def _names(released: Released, standard: StandardHead) -> list[str]:
    labels = released.model.labels
    if not standard.of_tokens:
        return list(labels)
    return ["O", *(f"{place}-{label}" for label in labels for place in "BI")]


def write_head(released: Released, folder: Path) -> None:
    """Write the head that a run trained beside a whole model."""
    from safetensors.torch import save as format_safetensors

    head = kind_of(released.model).head
    if head is None:
        return
    tensors = {name: values.contiguous() for name, values in head.tensors.items()}
    center = tensors.pop("center", None)
    write_bytes(folder / saved.HEAD, format_safetensors(tensors, {"format": "pt"}))
    if center is not None:
        content = format_safetensors({"center": center}, {"format": "pt"})
        write_bytes(folder / saved.CENTER, content)
    told = {"labels": list(released.model.labels), "pooling": head.pooling}
    write_json(folder / HEAD_ABOUT, told | {"feature_scale": head.scale})


def copy_beside(base: Path, folder: Path, *, tokenizer: bool = True) -> None:
    """Copy a base model's licence and, with the tokenizer, its settings of generation."""
    for path in sorted(base.iterdir()):
        copied = tokenizer and _COPIED.fullmatch(path.name)
        if path.is_file() and (copied or LICENCE_FILE.fullmatch(path.name)):
            shutil.copyfile(path, folder / path.name)


def read_back(
    released: Released, folder: Path, standard: StandardHead | None, probe: Probe
) -> Tensor:
    """Load a whole checkpoint as anybody would, and return its answers."""
    import transformers

    kind = kind_of(released.model)
    auto: Any = getattr(transformers, kind.auto if standard is None else standard.auto)
    with checkpoints.quietly():
        model = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    if standard is not None:
        with torch.no_grad():
            logits = model(**probe.inputs).logits.float()
        return logits[probe.mask.bool()] if standard.of_tokens else logits
    if kind.head is not None:
        return head_answers(model, written_head(folder, HEAD_ABOUT), probe)
    return language_answers(released, model, probe)


def compare(dtype: str, found: Tensor, settings: Settings, effect: Effect) -> float:
    """Refuse weights that lost what was trained; returns the largest difference of logits.

    Parameters
    ----------
    found : Tensor
        (N, C), of what was written.

    Raises
    ------
    TrainingError
        With the figures.
    """
    remedy = settings.if_lost if dtype != "float32" else REMEDY
    effect.require_kept(f"weights in {dtype}", found, settings.wanted, remedy)
    most = _MOST if dtype == "float32" else float("inf")
    return require_same("the merged checkpoint", found, settings.wanted, most, REMEDY)
