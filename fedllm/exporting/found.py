"""What a run released, where it lies: its adapter, what that says of itself, and its base model.

Exports and services begin here alike, so that both take the same folders and refuse the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedllm.config import Precision, Quantization, RunConfig
from fedllm.config.packages import locations_of_models, package_folder
from fedllm.errors import CheckpointError, ConfigError, FedllmError
from fedllm.models import checkpoints, saved
from fedllm.models.contents import held_as, read_object
from fedllm.models.naming import cached_folder, is_repository
from fedllm.models.shared import SharedModel
from fedllm.runs.names import RUN_TOML
from fedllm.runs.record import read_config
from fedllm.runs.start import GIVEN, find_start
from fedllm.tasks import task_of
from fedllm.tasks.beginning import DECIDED_BY_TEXTS

# How the weights of a base model are held.
Held = tuple[Quantization, Precision]
_PLAIN: Held = ("none", "float32")
_ROUNDED: tuple[Held, ...] = (
    ("int8", "float32"),
    ("int8", "bfloat16"),
    ("int4", "float32"),
    ("int4", "bfloat16"),
)


@dataclass(frozen=True, eq=False)
class Found:
    """A released adapter.

    Attributes
    ----------
    folder : Path
        The adapter's.
    about : mapping
        What it says of itself.
    origin : mapping
        ``adapter`` (SHA-256 of its files), and ``run``, ``run_id``, ``epsilon`` and ``delta``
        where it lies in the run's folder.
    config : RunConfig, optional
        The run's, where it lies beside it.
    base : Path
        Folder of its base model.
    held : tuple of str
        How the run held the base's weights (quantization, precision).
    """

    folder: Path
    about: Mapping[str, Any]
    origin: Mapping[str, Any]
    config: RunConfig | None
    base: Path
    held: Held


def find_released(location: Path, base: str | None = None) -> Found:
    """Find what a run released, and the base model that it stands on.

    Parameters
    ----------
    location : Path
        The folder of a finished run, or its folder ``adapter``, perhaps by itself.
    base : str, optional
        The base model's folder, or its repository in this machine's hub cache, where it is not
        the one that the run names.

    Raises
    ------
    ConfigError
        If there is no released adapter, or no base model where it should be.
    CheckpointError
        If a file is missing or damaged, or ``base`` is another model than the adapter's.
    """
    start = find_start(str(location), GIVEN)
    about = read_object(start.folder / saved.ABOUT)
    config = _config_beside(start.folder)
    place = _base_of(config, start.folder, about) if base is None else _base_at(base)
    folder = checkpoints.checkpoint_folder(place)
    held = _PLAIN if config is None else (config.model.quantization, config.model.precision)
    if config is None or base is not None:
        # Before it is loaded, which may fail in other words.
        prints = checkpoints.fingerprints(folder)
        if config is None:
            told = about.get("base_fingerprint")
            fitting = (one for one in _ROUNDED if told == held_as(prints.current, *one))
            held = next(fitting, _PLAIN)
        _require_base(start.folder, about, folder, held_as(prints.current, *held), prints.earlier)
    return Found(start.folder, about, start.about, config, folder, held)


def load_found(found: Found, config: RunConfig) -> SharedModel:
    """Load the base model with the adapter, and the head, in place.

    Parameters
    ----------
    found : Found
        What is loaded.
    config : RunConfig
        The run's, but for where and how the base is held: what was trained on rounded weights may
        be put on the weights themselves.

    Raises
    ------
    CheckpointError
        If a file is damaged, the base is another model than the adapter's, or the labels do not
        fit the head.
    """
    model = task_of(config).load_model(config, _labels(found, config))
    current, earlier = held_as(model.files_fingerprint, *found.held), model.earlier_fingerprint
    _require_base(found.folder, found.about, found.base, current, earlier)
    if found.about["base_fingerprint"] != earlier:
        model.fingerprint = current
    if found.config is None:
        _train_as(model, found.about)
    model.load_adapter(found.folder)
    # Nothing trains them, and the texts that they were made of need not be here.
    model.begin_with(model.tensors.only(*DECIDED_BY_TEXTS.get(model.method, ())))
    return model


def _config_beside(folder: Path) -> RunConfig | None:
    """Return the configuration of the run that an adapter lies in."""
    for place in (folder.parent, folder):
        if (place / RUN_TOML).exists():
            return read_config(place)
    return None


def _base_at(named: str) -> str:
    """Return where a base lies that somebody named by its folder or repository."""
    if named.startswith("package:") or Path(named).exists() or not is_repository(named):
        return named
    cached = cached_folder(named)
    if cached is None:
        raise ConfigError(
            f"there is no folder {named}, and no repository of that name in this machine's hub "
            "cache",
            f"check the folder's name, or put the repository there where there is a network (hf "
            f"download {named}); fedllm fetches nothing",
        )
    return str(cached)


def _base_of(config: RunConfig | None, folder: Path, about: Mapping[str, Any]) -> str:
    """Return where the base lies.

    As the run says; or by its repository in the hub's cache; or, by its fingerprint, in an
    installed package.
    """
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
    told = about.get("base_fingerprint")
    if (installed := _installed(told)) is not None:
        return installed
    was = None if config is None else config.model.path
    there = f"; the run had it in {was}" if was else ""
    print_of = f"fingerprint {str(told)[:16]}"
    if repository is None:
        raise ConfigError(
            f"the base model of the adapter in {folder} ({print_of}) is not on this machine where "
            f"it was, nor in an installed Python package{there}",
            "name its folder, or package:NAME/FOLDER, with --base (fedllm model show tells a "
            "folder's fingerprint); the adapter's README.md says what model it is",
        )
    raise ConfigError(
        f"the base model of the adapter in {folder}, {repository}, is not in this machine's hub "
        f"cache, nor in an installed Python package ({print_of}){there}",
        f"put it there where there is a network (hf download {repository}), or name its folder "
        "with --base; fedllm fetches nothing",
    )


def _installed(told: object) -> str | None:
    """Return the ``package:`` location of the model with a fingerprint, if a package carries it."""
    for location in locations_of_models():
        try:
            prints = checkpoints.fingerprints(package_folder(location))
        except FedllmError:
            continue
        if told in (prints.earlier, *(held_as(prints.current, *h) for h in (_PLAIN, *_ROUNDED))):
            return location
    return None


def _require_base(
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


def _labels(found: Found, config: RunConfig) -> tuple[str, ...]:
    """Return the labels in the head's order; there are as many as it has outputs for."""
    folder, labels = found.folder, found.about.get("labels") or []
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


def _train_as(model: SharedModel, about: Mapping[str, Any]) -> None:
    """Take the adapter for what its run's method trains first, which decides about its layout."""
    for part in (model.tensors.only("B", "head"), model.tensors.only("A", "B", "head")):
        if part.fingerprint == about.get("manifest"):
            model.layout = part
            model.train_only(part)
