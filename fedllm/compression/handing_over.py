"""Write a model that was made smaller, as an export: checked, with card and script."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as format_safetensors

from fedllm.compression.integers import Integers, quicken, to_integers
from fedllm.compression.integers_folder import ABOUT, LABEL, WEIGHTS, load_integers
from fedllm.compression.whole import Whole
from fedllm.errors import TrainingError
from fedllm.exporting.effect import MOST_LOST
from fedllm.exporting.export import describe
from fedllm.exporting.kinds import kind_of
from fedllm.exporting.merged import (
    DTYPES,
    HEAD_ABOUT,
    copy_beside,
    kept_in,
    write_head,
    write_merged,
)
from fedllm.exporting.peft_format import written_head
from fedllm.exporting.probe import (
    REMEDY,
    answers,
    difference,
    head_answers,
    language_answers,
    make_probe,
    require_same,
)
from fedllm.exporting.written import Settings, Written
from fedllm.files import atomic_directory, write_bytes, write_json

_PLAIN = "take fedllm export with --format merged --dtype float32, or --format peft"
_FINER = (
    "teach it to be rounded with --texts and --steps, take --to int8-weights or bfloat16, or "
    "fedllm export with --format merged --dtype float32"
)
_WIDER = "take --dtype float32"
# Two models of the same integers differ by how float32 rounds alone.
_MOST = 1e-4


@torch.no_grad()
def require_type(whole: Whole, dtype: str | None) -> None:
    """Refuse a type of weights that loses what was trained, before anything is taught.

    Parameters
    ----------
    dtype : str, optional
        As in `write_smaller`.

    Raises
    ------
    TrainingError
        If the whole model loses it already.
    """
    kept = dtype or kept_in(whole.released.base)
    if kept == "float32" or whole.effect.moved is None:
        return
    module = copy.deepcopy(whole.module)
    for values in module.backbone.parameters():
        values.data = values.data.type(DTYPES[kept]).type(values.dtype)
    found = answers(whole.with_module(module).released, make_probe(whole.released))
    whole.effect.require_kept(f"weights in {kept}", found, whole.effect.trained, _WIDER)


def write_smaller(
    whole: Whole,
    out: Path,
    how: str,
    before: Mapping[str, Any],
    notes: Sequence[str],
    dtype: str | None = None,
    *,
    answers_as_the_run: bool = False,
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
    answers_as_the_run : bool
        Whether it is meant to. Else the card says how far its answers are from the run's.

    Raises
    ------
    TrainingError
        If what was written answers otherwise than the model in memory, or the type of its weights
        loses what was trained; nothing is left of it.
    StorageError
        If the disk is full; nothing is left of it.
    """
    released = whole.released
    probe = make_probe(released)
    effect, given = whole.effect, answers(released, probe)
    settings = Settings(
        probe,
        effect.trained if answers_as_the_run else given,
        dtype,
        whole.reshaped(before),
        effect,
        _PLAIN if answers_as_the_run else _WIDER,
    )
    told = () if answers_as_the_run else (effect.told(given),)
    with atomic_directory(out) as new:
        written = write_merged(released, new, settings)
        largest = written.largest if answers_as_the_run else difference(given, effect.trained)
        written = replace(
            written, largest=largest, notes=(*notes, *told, *written.notes), smaller=True
        )
        describe(released, new, how, written)
    return written


def write_integers(whole: Whole, out: Path, held: Integers, notes: Sequence[str]) -> Written:
    """Write a model whose linear layers and embeddings are integers; it is rounded in place.

    Parameters
    ----------
    held : {"int8", "int8-weights", "int4"}
        See `fedllm.compression.integers.to_integers`.

    Raises
    ------
    ConfigError
        If there is nothing to round.
    TrainingError
        If what was written is read back otherwise, or integers lose what was trained; nothing is
        left of the folder.
    StorageError
        If the disk is full; nothing is left of the folder.
    """
    released, backbone = whole.released, whole.backbone
    rounded = to_integers(backbone, held)
    with atomic_directory(out) as new:
        tensors = {name: _own(values) for name, values in _once(backbone.state_dict()).items()}
        write_bytes(new / WEIGHTS, format_safetensors(tensors, {"format": "pt"}))
        plain = type(backbone.config).from_pretrained(released.base, local_files_only=True)
        # Where the base lies on this machine is nobody's business.
        plain.name_or_path = ""
        plain.to_json_file(new / "config.json")
        told = {
            "label": LABEL,
            "held": held,
            "layers": whole.architecture.layers,
            "auto": kind_of(whole.model).auto,
        }
        write_json(new / ABOUT, told)
        if kind_of(whole.model).head is not None:
            write_head(released, new)
        copy_beside(released.base, new)
        found = _read_back(whole, new, tensors)
        wanted = whole.effect.trained
        whole.effect.require_kept(_WORDS[held], found, wanted, _FINER, _MOST_LOST[held])
        written = Written(
            library="fedllm",
            what=f"A model with {rounded} linear layers and embeddings as {_WORDS[held]}, for "
            "fedllm.",
            largest=difference(found, wanted),
            notes=(*notes, whole.effect.told(found)),
            smaller=True,
        )
        describe(released, new, held, written)
    return written


# Four bits are coarse: what they add to the answers is noise, of which whoever takes them knows.
_MOST_LOST: dict[Integers, float] = {"int8": MOST_LOST, "int8-weights": MOST_LOST, "int4": 0.5}
_WORDS: dict[Integers, str] = {
    "int8": "integers of 8 bits",
    "int8-weights": "integers of 8 bits that plain states meet",
    "int4": "integers of 4 bits that plain states meet (embeddings of 8)",
}


def _read_back(whole: Whole, folder: Path, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return what the model in a folder gives, if it is the one that was written."""
    released, kind = whole.released, kind_of(whole.model)
    probe = make_probe(released)
    again, _ = load_integers(folder)
    held = again.state_dict()
    same = all(torch.equal(values, held[name]) for name, values in tensors.items())

    if not same:
        raise TrainingError(f"{folder} does not hold what was written", REMEDY)

    def given_by(backbone: torch.nn.Module) -> torch.Tensor:
        # Asked in one way alone: how states are rounded may hang on how many rows come at once.
        if kind.head is not None:
            return head_answers(backbone, written_head(folder, HEAD_ABOUT), probe)
        return language_answers(released, backbone, probe)

    require_same("what was written", given_by(again), given_by(whole.backbone), _MOST, REMEDY)
    quicken(again)
    return given_by(again)


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
