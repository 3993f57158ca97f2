"""The report as rows of text, for a terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedllm.compression.report.figures import Compared, Figures, Memory, Report
from fedllm.visible import visible

_MILLION = 1e6
_NAMES = {"macro_f1": "macro-F1", "f1": "F1"}


def measure_name(measure: str) -> str:
    """Return how people call a measure."""
    return _NAMES.get(measure, measure)


def headings(report: Report) -> list[str]:
    """Return the heads of the table's columns."""
    found = ["model", "on disk MB", "weights not zero", "operations", *_latency_headings(report)]
    found.append("memory MB (loading)")
    for measure in report.measures:
        found += [measure_name(measure), "difference (95%)"]
    found.append("same tokens" if report.new_tokens else "same answers")
    if report.membership is not None:
        found += ["membership AUC (95%)", "found at 1% / 0.1% false alarms"]
    return found


def rows(report: Report) -> list[list[str]]:
    """Return the table's rows; the original first, and below all the model before training."""
    found = [_row(model, report.measures) for model in report.models]
    if report.membership is None:
        return found
    attacks = (*report.membership.models, report.membership.control)
    width = len(found[0])
    found.append([report.membership.control.name, *["–"] * (width - 1)])
    for row, attack in zip(found, attacks, strict=True):
        low, high = attack.auc_interval
        row.append(f"{attack.auc:.3f} ({low:.3f} to {high:.3f})")
        row.append(f"{attack.tpr_at_1_percent:.1%} / {attack.tpr_at_0_1_percent:.1%}")
    return found


def notes(report: Report) -> list[str]:
    """Say how figures were measured."""
    threads = report.setting["threads"]
    found = [
        f"{report.records:,} records; {report.task}; processor {report.setting['processor']}, "
        f"{threads} thread{'s' if threads != 1 else ''}; torch {report.setting['torch']}.",
        "Time: medians of each batch's shortest; each model takes turns with the original on each "
        "batch, and how often it answers while the original does once stands behind its time. "
        + (
            f"An answer is {report.new_tokens} new tokens after a prompt."
            if report.new_tokens
            else "An answer is a forward pass; tokenising is left out."
        ),
        "Operations: of the products of one answer to one text, two for each multiplication; "
        "integers and zeros count like other numbers.",
        _memory_note(report.models[0].figures.memory),
        "Differences from the original are paired, with 95% intervals over the records "
        "(bootstrap). " + _same_note(report),
    ]
    if report.membership is not None:
        told = report.membership
        found.append(
            f"Membership inference (LiRA, {told.shadows} whole shadow models): {told.members} "
            f"training records and {told.others} others. AUC 0.5 is guessing; what is found "
            "before training is how the two kinds of records differ. No proof of privacy: another "
            "attack may find more."
        )
    return found


def markdown(report: Report) -> str:
    """Return table and notes as Markdown."""
    lines = [headings(report), ["---"] * len(headings(report)), *rows(report)]
    table = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    return "\n\n".join([table, *notes(report)]) + "\n"


def _cell(text: str) -> str:
    return visible(text).replace("|", "\\|")


def _latency_headings(report: Report) -> Iterator[str]:
    for latency in report.models[0].figures.latencies:
        yield f"ms, {latency.texts} text{'s' if latency.texts > 1 else ''} (times faster)"


def _row(model: Compared, measures: Sequence[str]) -> list[str]:
    figures = model.figures
    row = [f"{model.name} ({figures.form})", _disk(figures), _weights(figures)]
    row.append(f"{figures.operations / 1e9:.3g} G")
    row += [f"{one.ms:,.1f} ({one.times_faster:.2f})" for one in figures.latencies]
    row.append(_memory(figures.memory))
    for measure in measures:
        row.append(f"{figures.quality[measure]:.4f}")
        differs = figures.differences.get(measure)
        row.append(
            "–"
            if differs is None
            else f"{differs.value:+.4f} ({differs.low:+.4f} to {differs.high:+.4f})"
        )
    row.append(f"{figures.same_answers:.1%}")
    return row


def _disk(figures: Figures) -> str:
    return f"{figures.disk_bytes / _MILLION:,.1f}" + (" packed" if figures.packed else "")


def _weights(figures: Figures) -> str:
    if figures.weights is None or figures.weights_not_zero is None:
        return "–"
    share = figures.weights_not_zero / max(figures.weights, 1)
    return f"{figures.weights_not_zero / _MILLION:,.2f} M ({share:.0%})"


def _memory(memory: Memory | None) -> str:
    if memory is None:
        return "–"
    return f"{memory.held_bytes / _MILLION:,.0f} ({memory.peak_bytes / _MILLION:,.0f})"


def _memory_note(memory: Memory | None) -> str:
    if memory is None:
        return "Memory: this system does not tell it."
    libraries = memory.libraries_bytes / _MILLION
    return (
        "Memory: resident, of a process of its own that has loaded the model and answered, and "
        f"the most until then; {libraries:,.0f} MB of it are the libraries' before a model is "
        "loaded."
    )


def _same_note(report: Report) -> str:
    if report.new_tokens:
        return "Same tokens: where a token counts, both models hold the same next token likeliest."
    return "Same answers: texts to which both models give the same."
