"""Which models a service has, by their names, and one base in memory for all that stand on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedllm.config import RunConfig, parse
from fedllm.models import checkpoints
from fedllm.models.shared import SharedModel
from fedllm.runs.start import is_released
from fedllm.serving.embedding import Embedding
from fedllm.serving.exported import is_exported
from fedllm.serving.lane import Lane
from fedllm.serving.names import named_models
from fedllm.serving.usable import OwnLayerOf, Usable, open_usable
from fedllm.tasks.registry import task_for_base


@dataclass(frozen=True, eq=False)
class Served:
    """A model under a name.

    Attributes
    ----------
    name : str
        By which requests choose it.
    usable : Usable
        How it is asked.
    lane : Lane, optional
        Where its texts are written; None where it writes none.
    """

    name: str
    usable: Usable
    lane: Lane | None


def serve_models(
    locations: Sequence[str],
    base: str | None,
    device: str | None,
    max_length: int | None,
    own_layer: OwnLayerOf | None,
    heard: Callable[[str], None] = lambda name: None,
) -> dict[str, Served]:
    """Load models, each under the name that `named_models` gives it.

    Parameters
    ----------
    own_layer : callable, optional
        Reads the site's own layer; each run is then served a second time with it.
    heard : callable
        Told which model is loaded next.

    Raises
    ------
    FedllmError
        See `named_models` and `open_usable`.
    """
    found: dict[str, Served] = {}
    for called, place in named_models(locations, own_layer is not None).items():
        heard(called)
        layer = own_layer if place.own else None
        usable = _opened(place.folder, base, device, max_length, layer)
        _share_base(usable, list(found.values()))
        lane = None if usable.generator is None else Lane(usable.generator)
        found[called] = Served(called, usable, lane)
    return found


def _opened(
    place: Path,
    base: str | None,
    device: str | None,
    max_length: int | None,
    own_layer: OwnLayerOf | None,
) -> Usable:
    if is_released(place) or is_exported(place) or not (place / "config.json").exists():
        return open_usable(place, base, device, max_length, own_layer)
    _, architecture = checkpoints.read_config(checkpoints.checkpoint_folder(str(place)))
    if architecture.causal:
        return open_usable(place, None, device, max_length)
    return _encoder(place, device, max_length or min(architecture.positions or 512, 512))


def _encoder(place: Path, device: str | None, max_length: int) -> Usable:
    """Return a base model that reads, for vectors alone."""
    task = task_for_base(causal=False)
    values = {
        "name": "encoder",
        "task": task.name,
        "model": {"path": str(place), "max_length": max_length, "head_start": "zero"},
        "data": {"train": "none", "labels": ["a", "b"]},
        "lora": {"rank": 0},
        "engine": {} if device is None else {"device": device},
    }
    model = task.load_model(parse(RunConfig, values, str(place)), ("a", "b"))
    embedding = Embedding(model, max_length)
    what = f"the encoder in {place}"
    return Usable(place, what, max_length, None, None, None, "text", embedding=embedding)


def _share_base(usable: Usable, others: Sequence[Served]) -> None:
    """Let a model keep no second copy of a base that another one has in memory."""
    mine = _shared(usable)
    for other in others:
        theirs = _shared(other.usable)
        if mine is None or theirs is None or theirs.fingerprint != mine.fingerprint:
            continue
        frozen = {n: p for n, p in theirs.module.named_parameters() if not _own(theirs, n)}
        for name, parameter in mine.module.named_parameters():
            twin = frozen.get(name)
            same = twin is not None and not _own(mine, name) and twin.dtype == parameter.dtype
            if same and twin is not None and twin.equal(parameter):
                parameter.data = twin.data
        return


def _shared(usable: Usable) -> SharedModel | None:
    return None if usable.released is None else usable.released.model


def _own(model: SharedModel, name: str) -> bool:
    return any(segment.name == name for segment in model.tensors.segments)
