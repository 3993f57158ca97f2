"""``fedllm audit report``: the report of a finished run."""

from __future__ import annotations

from pathlib import Path

import typer


def report(run: Path = typer.Argument(help="The folder of a finished run.")) -> None:
    """Write report.html, one page for a data-protection officer, into a run's folder."""
    from fedllm.audit.report import write_report

    print(write_report(run))
