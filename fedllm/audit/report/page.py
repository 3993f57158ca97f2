"""Write a run's report: one HTML file that a data-protection officer can read and print.

Everything in it comes from the run folder: what the run recorded (`fedllm.runs.record`)
and what audits left in ``audit/`` (`fedllm.audit.attacks.results`). The file loads nothing from
anywhere. Names of sites and other recorded text are hostile input: Jinja2 escapes all of it,
control characters and turned text are shown as escapes, and the page forbids scripts.
``report.json`` says the same for machines.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedllm.audit.ledgers.comparison import load_comparison
from fedllm.audit.report.audits import AuditParts
from fedllm.audit.report.comparison import comparison_part
from fedllm.audit.report.dates import dates_part
from fedllm.audit.report.numbers import bound, number, percent
from fedllm.audit.report.run_parts import RunParts
from fedllm.audit.report.technical import TechnicalParts
from fedllm.files import write_bytes, write_json
from fedllm.runs.names import REPORT as REPORT_FILE
from fedllm.runs.names import REPORT_TWIN as TWIN_FILE
from fedllm.runs.record import read_run_folder, require_trained
from fedllm.visible import visible

Language = Literal["en", "zh"]

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    run_folder: Path,
    language: Language = "en",
    beside: Sequence[Path] = (),
    made: datetime | None = None,
) -> Path:
    """Write ``report.html`` and ``report.json`` into a finished run's folder.

    Parameters
    ----------
    run_folder : Path
        Holds ``run.toml``, ``summary.json``, ``metrics.jsonl`` and, where they were made,
        ``comparison.json`` and the results of audits.
    language : {"en", "zh"}
        Of the texts.
    beside : sequence of Path
        Folders of runs to show promise and attacks of, beside this one's.
    made : datetime, optional
        The time that the report gives for itself; now when left out.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    ConfigError
        If a file of the folder is missing, damaged or wrong.
    FedllmError
        If the report cannot be written.
    """
    texts = read_texts(language)
    run = read_run_folder(run_folder)
    require_trained(run_folder)
    others = [read_run_folder(folder) for folder in beside]
    compared = load_comparison(run_folder)
    parts = RunParts(run, texts).parts()
    parts["dates"] = dates_part(run, made or datetime.now(UTC), texts["dates"])
    parts |= AuditParts(run, others, texts).parts()
    parts |= TechnicalParts(run, texts).parts()
    parts["comparison"] = comparison_part(compared, texts["comparison"]) if compared else None
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(t=texts, **parts)
    write_json(run_folder / TWIN_FILE, {"language": language, **_plain(parts)})
    path = run_folder / REPORT_FILE
    write_bytes(path, page.encode())
    return path


def read_texts(language: Language) -> dict[str, Any]:
    """Return every text of the report in one language."""
    return tomllib.loads((_TEMPLATES / f"report.{language}.toml").read_text("utf-8"))


def _shown(value: Any) -> Any:
    """Make visible what a text of others would hide; plots did so themselves."""
    return visible(value, keep="\n") if type(value) is str else value


def _plain(value: Any) -> Any:
    """Return a part as plain JSON values; plots are left out."""
    if isinstance(value, SimpleNamespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if not isinstance(inner, Markup)}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value if not isinstance(inner, Markup)]
    return value


__all__ = ["REPORT_FILE", "TWIN_FILE", "bound", "number", "percent", "write_report"]
