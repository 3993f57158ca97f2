"""Write what was found: `report.json` for machines, `table.md` and one page for people.

The page loads nothing from anywhere. Names of folders are hostile input: Jinja2 escapes all of it,
and the page forbids scripts.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedllm.audit.report.plots import roc_plot
from fedllm.compression.report import table
from fedllm.compression.report.figures import Report
from fedllm.compression.report.plot import trade_plot
from fedllm.files import write_bytes, write_json
from fedllm.runs.names import REPORT, REPORT_TWIN
from fedllm.visible import visible

TABLE = "table.md"
_ROC = {"false": "false alarms", "true": "members found", "guessing": "guessing"}


def write_report(report: Report, out: Path) -> Path:
    """Write the three files into a folder, and return the page's path.

    Raises
    ------
    StorageError
        If one cannot be written.
    """
    write_json(out / REPORT_TWIN, report.model_dump(mode="json"))
    write_bytes(out / TABLE, table.markdown(report).encode())
    # The look of all reports is the audit's.
    packages = ("fedllm.compression.report", "fedllm.audit.report")
    loader = ChoiceLoader([PackageLoader(package) for package in packages])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    page = environment.get_template("page.html.j2").render(
        title=visible(f"{report.models[0].name}, and what it was made smaller to"),
        made=report.made,
        headings=table.headings(report),
        rows=[[visible(cell) for cell in row] for row in table.rows(report)],
        plots=_plots(report),
        notes=[visible(note) for note in table.notes(report)],
    )
    path = out / REPORT
    write_bytes(path, page.encode())
    return path


def _plots(report: Report) -> list[Markup]:
    measure = report.measures[0]
    up = table.measure_name(measure)
    several = report.models[0].figures.latencies[-1].texts
    quality = [
        (model.name, model.figures, model.figures.quality[measure]) for model in report.models
    ]
    sizes = [(name, figures.disk_bytes / 1e6, good) for name, figures, good in quality]
    times = [(name, figures.latencies[-1].ms, good) for name, figures, good in quality]
    found = [
        trade_plot("size", sizes, "on disk, MB", up, f"Size on disk against {up}, model by model"),
        trade_plot(
            "time", times, f"ms for {several} texts", up, f"Time against {up}, model by model"
        ),
    ]
    if report.membership is not None:
        attacks = (*report.membership.models, report.membership.control)
        curves = [(one.name, (one.false_positive, one.true_positive)) for one in attacks]
        found.append(roc_plot(curves, _ROC, "Members found against false alarms, model by model"))
    return found
