"""A run in TensorBoard: a scalar for each figure of a round, or of a report of pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedllm.config import RunConfig
from fedllm.config.parsing import without_passwords
from fedllm.errors import ConfigError
from fedllm.extras import remedy_of
from fedllm.runs.metrics import RoundReport
from fedllm.runs.observer import Observer, Start, StepReport
from fedllm.runs.shelf import settings_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardObserver(Observer):
    """Writes what a run tells into a folder that ``tensorboard --logdir`` shows.

    Parameters
    ----------
    folder : Path or str
        Of this run alone. One that goes on in the same folder goes on there, too; what it does
        once more replaces what was there.

    Raises
    ------
    ConfigError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        if find_spec("tensorboard") is None:
            raise ConfigError("TensorBoard is not installed", remedy_of("tensorboard"))
        self._folder = Path(folder)
        self._writer: SummaryWriter | None = None

    def started(self, start: Start) -> None:
        """Open the folder, and write the settings down, without user and password of any URL."""
        # A round that was begun is done again.
        self._open(start.done + 1 if start.done else None)
        if isinstance(start.config, RunConfig):
            settings = without_passwords(settings_of(start.config))
            rows = [f"| {key} | {_cell(value)} |" for key, value in settings.items()]
            table = "\n".join(["| key | value |", "|---|---|", *rows])
            if self._writer is not None:
                self._writer.add_text("settings", table, start.done)

    def finished_round(self, report: RoundReport) -> None:
        """Write a round's figures."""
        for kind, figures in (("test", report.metrics), ("at the sites", report.site_metrics)):
            self._write(report.round, **{f"{kind}/{k}": v for k, v in (figures or {}).items()})
        self._write(report.round, **{"privacy/epsilon, at most": report.largest_epsilon})
        if report.round:
            self._write(report.round, **_of_training(report))
        self._flush()

    def advanced(self, report: StepReport) -> None:
        """Write where pretraining stands."""
        told = {"train/loss": report.loss, "train/tokens a second": report.tokens_per_s}
        held_out = {f"test/{name}": value for name, value in (report.evaluation or {}).items()}
        self._write(report.step, **told, **held_out)
        self._flush()

    def aligned(
        self, step: int, training: Mapping[str, float], measured: Mapping[str, float]
    ) -> None:
        """Write a step of an alignment: of its own answers, and of what is held out of it."""
        if self._writer is None:
            self._open(step)
        self._write(step, **{f"train/{name}": value for name, value in training.items()})
        self._write(step, **{f"test/{name}": value for name, value in measured.items()})
        self._flush()

    def close(self) -> None:
        """Close the folder."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)

    def _write(self, step: int, **figures: float | None) -> None:
        if self._writer is None:
            return
        for name, value in figures.items():
            # An epsilon without a bound is no point of a curve.
            if value is not None and isfinite(value):
                self._writer.add_scalar(name.replace(" ", "_").replace(",", ""), value, step)

    def _flush(self) -> None:
        # A viewer beside the run sees each round when it is done.
        if self._writer is not None:
            self._writer.flush()


def _of_training(report: RoundReport) -> dict[str, float | None]:
    return {
        "sites/in the sum": report.sites,
        "sites/left out": len(report.dropped),
        "bytes/from the sites": report.bytes_up,
        "bytes/to the sites": report.bytes_down,
        "update/norm": report.update_norm,
        "update/norm over an honest one": report.norm_ratio,
        **{f"seconds/{name}": value for name, value in report.seconds.items()},
    }


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
