"""Measure models side by side, each once: what was found of a folder is kept, and taken again."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
import transformers

from fedllm import __version__
from fedllm.audit.attacks.results import MembershipResult
from fedllm.canonical import canonical_json, read_object, sha256_hex
from fedllm.clock import utc_now
from fedllm.compression.measuring import operations, tensor_bytes
from fedllm.compression.packing import unpack
from fedllm.compression.report import costs
from fedllm.compression.report.figures import LABEL, Compared, Figures, Report
from fedllm.compression.report.folders import Compressed, Original, disk_bytes
from fedllm.compression.report.membership import (
    Attack,
    attacked_run,
    check_records,
    tell_apart,
)
from fedllm.compression.report.opened import (
    NEW_TOKENS,
    Answer,
    Inputs,
    answering,
    make_inputs,
    open_model,
    require_same_tokens,
)
from fedllm.compression.report.quality import Judged, differences, judge, quality, same_answers
from fedllm.config.task import learns_preferences, trains_a_head
from fedllm.data.records import Record
from fedllm.errors import ConfigError
from fedllm.exporting.export import export
from fedllm.files import make_output_folder, write_json
from fedllm.locks import exclusive
from fedllm.models.shared import SharedModel
from fedllm.tasks import task_of

_KEPT, _LOCK, _UNPACKED = "measured", ".lock", ".unpacked."
Heard = Callable[[str, int, int], None]
Setting = dict[str, str | int]
Kept = TypeVar("Kept", Figures, MembershipResult)


def measure(
    original: Original,
    variants: Sequence[Compressed],
    records: str,
    out: Path,
    attack: Attack | None,
    heard: Heard,
) -> Report:
    """Measure the original and all variants on the same records.

    Parameters
    ----------
    records : str
        File of labelled records, or of texts, with the run's columns.
    out : Path
        Folder of the report; in ``measured/`` it keeps what was found of each model.
    attack : Attack, optional
        Membership inference, where it is asked for.
    heard : callable
        Told what is done now, and how much of how much is done.

    Raises
    ------
    FedllmError
        If records cannot be read, a model not be loaded or compared, or another process writes into
        the folder; what was measured of others is kept.
    """
    if learns_preferences(original.whole.task):
        raise ConfigError(
            "losses of preferences compare a model with the one that its run began with, which "
            "no compressed model has",
            "compare models of an instruction run, or ask each by `fedllm generate`",
        )
    attacked = None if attack is None else attacked_run(original, attack)
    apart = "" if attacked is None else check_records(attacked)
    task = task_of(original.whole.task)
    found = task.read_public(original.data.model_copy(update={"test": records}))
    make_output_folder(out, "--out")
    setting = _setting(original, found)
    models = [original.whole, *variants]
    busy, remedy = f"another report is written into {out}", "wait for it, or name another --out"
    with exclusive(out / _LOCK, busy, remedy), _Folders(out) as folders:
        session = _Session(original, found, folders, heard)
        compared = []
        for model in models:
            path = _path(out, {"setting": setting, "digest": model.digest})
            figures = _read(path, Figures)
            if figures is None:
                figures = session.figures(model)
                write_json(path, figures.model_dump(mode="json"))
            heard(f"{model.name}: measured", 1, 1)
            compared.append(Compared(name=model.name, digest=model.digest, figures=figures))
        membership = None
        if attack is not None and attacked is not None:
            named = [[model.name, model.digest] for model in models]
            told = {"pairs": attack.pairs, "records": apart, "models": named}
            path = _path(out, {"setting": setting, "membership": told})
            membership = _read(path, MembershipResult)
            if membership is None:
                opened = ((model.name, session.open(model)) for model in models)
                membership = tell_apart(original, attacked, attack, opened, heard)
                write_json(path, membership.model_dump(mode="json", exclude_unset=True))
    return Report(
        made=utc_now(),
        task=original.whole.task,
        records=len(found),
        setting=setting,
        new_tokens=0 if trains_a_head(original.whole.task) else NEW_TOKENS,
        models=tuple(compared),
        membership=membership,
    )


class _Folders:
    """Where each model lies ready to be loaded; what had to be unpacked goes at the end."""

    def __init__(self, out: Path) -> None:
        # A report that was killed left them.
        for earlier in out.glob(f"{_UNPACKED}*"):
            shutil.rmtree(earlier, ignore_errors=True)
        # Beside the report: a temporary folder of the system may be small, or in memory.
        self._scratch = tempfile.TemporaryDirectory(prefix=_UNPACKED, dir=out)
        self._ready: dict[str, Path] = {}

    def __enter__(self) -> _Folders:
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def of(self, model: Compressed, original: Original) -> Path:
        """Return a folder that can be loaded."""
        if model.digest not in self._ready:
            place = Path(self._scratch.name) / str(len(self._ready))
            if model.packed:
                unpack(model.folder, place)
            elif model is original.whole and original.config is not None:
                export(model.folder, place, "merged", original.base)
            else:
                place = model.folder
            self._ready[model.digest] = place
        return self._ready[model.digest]


@dataclass(eq=False)
class _Session:
    """The original in memory, which is loaded when the first model is to be compared with it."""

    original: Original
    records: Sequence[Record]
    folders: _Folders
    heard: Heard

    @cached_property
    def _model(self) -> SharedModel:
        return self._load(self.original.whole)

    @cached_property
    def _inputs(self) -> Inputs:
        return make_inputs(self._model, self.records, self.original.max_length)

    @cached_property
    def _answer(self) -> Answer:
        return answering(self._model)

    @cached_property
    def _judged(self) -> Judged:
        return self._judge(self.original.whole.name, self._model)

    def open(self, model: Compressed) -> SharedModel:
        """Return a model, loaded."""
        return self._model if model is self.original.whole else self._load(model)

    def _load(self, model: Compressed) -> SharedModel:
        self.heard(f"{model.name}: loading", 0, 1)
        return open_model(self.folders.of(model, self.original))

    def figures(self, compressed: Compressed) -> Figures:
        """Measure one model."""
        name, alone = compressed.name, compressed is self.original.whole
        model = self.open(compressed)
        require_same_tokens(name, model, self._inputs, self.original.max_length)
        judged = self._judged if alone else self._judge(name, model)
        answer = self._answer if alone else answering(model)
        self.heard(f"{name}: time", 0, 1)
        latencies = costs.latencies(answer, self._answer, self._inputs)
        # A model's first answer may hold more than an answer; it is given by now.
        counted = operations(answer, self._inputs.alone[0])
        weights = costs.weights(model.module)
        folder = self.folders.of(compressed, self.original)
        self.heard(f"{name}: memory", 0, 1)
        return Figures(
            form=compressed.form,
            packed=compressed.packed,
            disk_bytes=disk_bytes(compressed.folder if compressed.packed else folder),
            tensor_bytes=tensor_bytes(model.module),
            weights=None if weights is None else weights[0],
            weights_not_zero=None if weights is None else weights[1],
            operations=counted,
            latencies=latencies,
            memory=costs.memory(name, folder, self._inputs),
            quality=quality(model, judged),
            differences={} if alone else differences(model, judged, self._judged),
            same_answers=same_answers(judged, self._judged),
        )

    def _judge(self, name: str, model: SharedModel) -> Judged:
        count = len(self.records)
        heard = self.heard
        return judge(
            name,
            model,
            self._inputs,
            self.original.max_length,
            lambda done: heard(f"{name}: records", done, count),
        )


def _setting(original: Original, records: Sequence[Record]) -> Setting:
    """Return what figures depend on beside the model."""
    contents = [sha256_hex(record.canonical()) for record in records]
    return {
        "format": LABEL,
        "original": original.whole.digest,
        "records_sha256": sha256_hex(canonical_json({"records": contents})),
        "max_length": original.max_length,
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "fedllm": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _path(out: Path, of: dict[str, object]) -> Path:
    return out / _KEPT / f"{sha256_hex(canonical_json(of))[:32]}.json"


def _read(path: Path, kind: type[Kept]) -> Kept | None:
    """Read what was kept; None where there is nothing, or nothing that can be believed."""
    try:
        return kind.model_validate(read_object(path.read_bytes()))
    except (OSError, ValueError):
        return None
