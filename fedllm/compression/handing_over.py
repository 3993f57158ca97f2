"""Write a model that was made smaller, as an export: checked, with card and script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as format_safetensors

from fedllm.compression.int8 import to_int8
from fedllm.compression.int8_folder import ABOUT, INT8, WEIGHTS, load_int8
from fedllm.compression.whole import Whole
from fedllm.errors import ConfigError, TrainingError
from fedllm.exporting.export import describe
from fedllm.exporting.kinds import kind_of
from fedllm.exporting.merged import copy_beside, write_head, write_merged
from fedllm.exporting.probe import REMEDY, answers, make_probe
from fedllm.exporting.written import Settings, Written
from fedllm.files import atomic_directory, write_bytes, write_json


def require_new(out: Path) -> None:
    """Refuse a folder that is there.

    Raises
    ------
    ConfigError
    """
    if out.exists():
        raise ConfigError(f"{out} is there already", "name another folder, or remove it")


def write_smaller(
    whole: Whole,
    out: Path,
    how: str,
    before: Mapping[str, Any],
    notes: Sequence[str],
    dtype: str | None = None,
) -> Written:
    """Write a model as a whole checkpoint of transformers.

    Parameters
    ----------
    how : str
        In what way it was made smaller, in a word.
    before : mapping
        The configuration as it was (``to_dict``).
    notes : sequence of str
        What the card says of it.
    dtype : str, optional
        In which weights are kept; as the base does when left out.

    Raises
    ------
    TrainingError
        If what was written answers otherwise than the model in memory; nothing is left of it.
    StorageError
        If the disk is full; nothing is left of it.
    """
    released = whole.released
    probe = make_probe(released)
    settings = Settings(probe, answers(released, probe), dtype, whole.reshaped(before))
    with atomic_directory(out) as new:
        written = write_merged(released, new, settings)
        written = replace(written, notes=(*notes, *written.notes))
        describe(released, new, how, written)
    return written


def write_int8(whole: Whole, out: Path, notes: Sequence[str]) -> Written:
    """Write a model whose linear layers and embeddings are integers; it is rounded in place.

    Raises
    ------
    ConfigError
        If there is nothing to round.
    TrainingError
        If what was written is read back otherwise; nothing is left of the folder.
    StorageError
        If the disk is full; nothing is left of the folder.
    """
    released, backbone = whole.released, whole.backbone
    probe = make_probe(released)
    wanted = answers(released, probe)
    rounded = to_int8(backbone)
    largest = float((answers(released, probe) - wanted).abs().max())
    with atomic_directory(out) as new:
        tensors = {name: _own(values) for name, values in _once(backbone.state_dict()).items()}
        write_bytes(new / WEIGHTS, format_safetensors(tensors, {"format": "pt"}))
        plain = type(backbone.config).from_pretrained(released.base, local_files_only=True)
        # Where the base lies on this machine is nobody's business.
        plain.name_or_path = ""
        plain.to_json_file(new / "config.json")
        told = {
            "label": INT8,
            "layers": whole.architecture.layers,
            "auto": kind_of(whole.model).auto,
        }
        write_json(new / ABOUT, told)
        if kind_of(whole.model).head is not None:
            write_head(released, new)
        copy_beside(released.base, new)
        again, _ = load_int8(new)
        held = again.state_dict()
        if any(not torch.equal(values, held[name]) for name, values in tensors.items()):
            raise TrainingError(f"{out} does not hold what was written", REMEDY)
        written = Written(
            library="fedllm",
            what=f"A model with {rounded} linear layers and embeddings in 8 bits, for fedllm.",
            largest=largest,
            notes=tuple(notes),
        )
        describe(released, new, "int8", written)
    return written


def _once(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors without those that are another one under a second name."""
    seen: dict[tuple[int, int], str] = {}
    found = {}
    for name, values in tensors.items():
        if seen.setdefault((values.data_ptr(), values.numel()), name) == name:
            found[name] = values
    return found


def _own(values: torch.Tensor) -> torch.Tensor:
    return values.detach().contiguous().clone()
