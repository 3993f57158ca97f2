"""The figures of a round, one line each in ``metrics.jsonl``."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from fedllm.files import append_line, write_bytes
from fedllm.runs.plain_json import damaged, finite, read_objects, to_line

Figures = dict[str, float | None]
# What is written only where it says something, as before there was any of it.
_LATER = ("site_parts", "rejected", "kept_round", "norm_ratio", "averaging_lost")


class RoundReport(BaseModel):
    """One line of ``metrics.jsonl``; a figure that was not finite is None.

    The last four, and ``site_parts``, are left out where they say nothing.

    Attributes
    ----------
    round : int
        0 is the evaluation before training.
    sites : int
        Sites whose updates are in the sum.
    dropped : dict of str to str
        Sites that are not, and why.
    metrics : dict, optional
        Test metrics on the coordinator's public file, of the shared model that the round gave.
    site_metrics : dict, optional
        The same, of the model that the run went on with, on records that the sites hold out, from
        noised sums; with the standard deviations that the noise gives them.
    site_parts : dict of dict
        The same by label or group, where the run asks for it (``evaluation.parts``); empty for
        those of which the noise leaves too little.
    epsilon : dict of str to float
        Spent so far by this run at each site; known to the coordinator in a simulation only.
    update_norm : float
        L2 norm of the mean update.
    bytes_up, bytes_down : int
        Bytes from and to all sites.
    seconds : dict of str to float
        Wall time by phase; "train" and "encrypt" are sums over sites.
    started, finished : str
        When the round was begun and when this line was written; UTC, ISO 8601.
    rejected : dict of str to str
        Why the round did not count: "norm", its sum was no honest cohort's and was not applied;
        "test", the public test file found its model much worse and it was rolled back.
    kept_round : int, optional
        The round whose model the run went on with, where it was rolled back.
    norm_ratio : float, optional
        The sum's norm over the most that an honest cohort's has, of the whole sum or of the
        tensor where it is largest; None where no such limit is known.
    averaging_lost : float, optional
        What was lost because A and B are averaged apart: its norm over that of the mean change of
        all adapted layers. None where nothing is lost, or nobody can know; see
        `fedllm.adapters.averaging`.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    round: int = Field(ge=0)
    sites: int = Field(default=0, ge=0)
    dropped: dict[str, str] = {}
    metrics: Figures | None = None
    site_metrics: Figures | None = None
    site_parts: dict[str, Figures] = {}
    epsilon: Figures = {}
    update_norm: float | None = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Figures = {}
    started: str = ""
    finished: str = ""
    rejected: dict[str, str] = {}
    kept_round: int | None = Field(default=None, ge=0)
    norm_ratio: float | None = None
    averaging_lost: float | None = None

    @model_serializer(mode="wrap")
    def _without_what_says_nothing(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = inner(self)
        return {k: v for k, v in values.items() if k not in _LATER or v not in ({}, None)}

    @field_validator(
        "metrics",
        "site_metrics",
        "site_parts",
        "epsilon",
        "update_norm",
        "seconds",
        "norm_ratio",
        "averaging_lost",
        mode="before",
    )
    @classmethod
    def _only_finite(cls, value: Any) -> Any:
        return finite(value)

    @field_validator("dropped", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return dict.fromkeys(value, "") if isinstance(value, list) else value

    @classmethod
    def parse(cls, value: Mapping[str, Any], where: str) -> Self:
        """Build a report from plain values; keys of a later version are left out.

        Raises
        ------
        FedllmError
            Names the place and the key that is wrong.
        """
        try:
            return cls.model_validate({k: v for k, v in value.items() if k in cls.model_fields})
        except ValidationError as error:
            raise damaged(where, _explain(error)) from None

    @property
    def spent(self) -> dict[str, float]:
        """Epsilon by site, infinite where it has no bound, which a line can only say as null."""
        return {site: inf if value is None else value for site, value in self.epsilon.items()}

    @property
    def largest_epsilon(self) -> float | None:
        """The largest of all sites; infinite where some site's has no bound, None without any."""
        return max(self.spent.values(), default=None)


def _explain(error: ValidationError) -> str:
    key, *inner = error.errors()[0]["loc"]
    if key == "site_parts":
        return "'site_parts' is not a table of tables of numbers"
    if inner and key != "rejected":
        return f"'{key}' holds under '{inner[0]}' something that is not a number"
    if key == "dropped":
        return "'dropped' is neither a list nor a table of reasons"
    if key in ("metrics", "site_metrics", "epsilon", "seconds"):
        return f"'{key}' is not a table of numbers"
    if key == "rejected":
        return "'rejected' is not a table of reasons"
    numbers = ("update_norm", "norm_ratio", "averaging_lost")
    return f"'{key}' is not a {'number' if key in numbers else 'whole number'}"


def append_report(path: Path, report: RoundReport) -> None:
    """Add a line to ``metrics.jsonl``, durably; what is not finite is written as null."""
    append_line(path, to_line(report.model_dump()))


def read_reports(path: Path) -> list[RoundReport]:
    """Read all lines of ``metrics.jsonl``; none if there is no file.

    Raises
    ------
    FedllmError
        If a line is damaged, or the rounds are not in order; names the line.
    """
    if not path.exists():
        return []
    reports: list[RoundReport] = []
    for where, value in read_objects(path):
        report = RoundReport.parse(value, where)
        if reports and report.round <= reports[-1].round:
            raise damaged(where, f"round {report.round} follows round {reports[-1].round}")
        reports.append(report)
    return reports


def cut_reports(path: Path, last_round: int) -> list[RoundReport]:
    """Drop the lines after ``last_round``, and a line that a crash cut off; return the rest.

    Raises
    ------
    FedllmError
        If another line is damaged.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_bytes(path, whole)
    reports = read_reports(path)
    kept = [report for report in reports if report.round <= last_round]
    if len(kept) != len(reports):
        lines = [to_line(report.model_dump()) + "\n" for report in kept]
        write_bytes(path, "".join(lines).encode())
    return kept
