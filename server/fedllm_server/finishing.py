"""The end of a run: adapter, summary, report and card, the same in simulation and deployment."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedllm import __version__
from fedllm.adapters import adapter_of, sent_in_turn
from fedllm.audit.report.page import write_report
from fedllm.clock import utc_now
from fedllm.config import RunConfig
from fedllm.encryption.plan import make_plan
from fedllm.exporting.export import write_released_card
from fedllm.exporting.released import base_repository
from fedllm.identity.roster import Roster
from fedllm.mechanisms import mechanism_of
from fedllm.models.shared import SharedModel
from fedllm.privacy.ledger.heads import read_heads
from fedllm.runs import names as files
from fedllm.runs.metrics import RoundReport, read_reports
from fedllm.runs.summary import Summary, write_summary
from fedllm.training.evaluate import evaluate_parts
from fedllm_server.public_part import PublicPart


def finish(
    out: Path,
    config: RunConfig,
    model: SharedModel,
    run: str,
    names: tuple[str, ...],
    began: float,
    roster: Roster,
    simulated: bool = False,
    colluders_epsilon: float | None = None,
    started_from: Mapping[str, Any] | None = None,
    public: PublicPart | None = None,
) -> Summary:
    """Write adapter, summary, report and card of a run whose rounds are done, in this order.

    ``began`` is `time.perf_counter` at the start of the command; ``colluders_epsilon`` is known
    in a simulation only; ``started_from`` stands in the run's state; ``public`` is there where
    quality by label and group shall be told.
    """
    model.save_adapter(out / files.ADAPTER, base_repository(config))
    reports = read_reports(out / files.METRICS)
    seconds = time.perf_counter() - began
    summary = make_summary(
        config,
        model,
        run,
        names,
        reports,
        seconds,
        simulated,
        {name: title for name, title in roster.titles.items() if name in names},
        colluders_epsilon,
        started_from,
    )
    if public is not None:
        summary = summary.model_copy(update={"quality": quality_of(public, not started_from)})
    write_summary(out, summary)
    write_report(out)
    # Last, for it names the report.
    write_released_card(out, model)
    return summary


def quality_of(public: PublicPart, from_untrained: bool) -> dict[str, Any]:
    """Measure the model that a run gave on each label and group of the public test file.

    Returns
    -------
    dict
        By "label" or "group", then by its name: figures ``after`` the run and, where it began with
        an untrained adapter, ``before``.
    """
    model, found = public.model, dict[str, Any]()
    if public.test is None:
        return found
    method = adapter_of(model)
    for kind, parts in public.parts.items():
        after = evaluate_parts(model, public.test, parts)
        found[kind] = {part: {"after": figures} for part, figures in after.items()}
        if from_untrained:
            with model.unchanged():
                method.place(method.start())
                for part, figures in evaluate_parts(model, public.test, parts).items():
                    found[kind][part]["before"] = figures
    return found


def known_sites(out: Path) -> set[str]:
    """Return the sites that a run folder tells of: they answered, or dropped out."""
    heads = out / files.HEADS
    names = set(read_heads(heads)) if heads.exists() else set()
    for report in read_reports(out / files.METRICS):
        names.update(report.dropped)
    return names


def make_summary(
    config: RunConfig,
    model: SharedModel,
    run_id: str,
    names: tuple[str, ...],
    reports: list[RoundReport],
    total_s: float,
    simulated: bool = False,
    titles: dict[str, str] | None = None,
    colluders_epsilon: float | None = None,
    started_from: Mapping[str, Any] | None = None,
) -> Summary:
    """Put the figures of all rounds together."""
    method = adapter_of(model)
    measured = [report for report in reports if report.metrics]
    last = measured[-1] if measured else None
    if last is not None and last.kept_round is not None:
        # The final model is the one that the run went back to.
        last = next((r for r in measured if r.round == last.kept_round), last)
    at_sites = [report.site_metrics for report in reports if report.site_metrics]
    first = next((r for r in measured if r.round == 0), None)
    rounds = [report for report in reports if report.round]
    spent: dict[str, float] = {}
    for report in rounds:
        spent.update(report.spent)
    # What comes with an adapter lies behind it.
    adapter = method.held()[: method.own.length]
    phases = ("train", "encrypt", "aggregate", "decrypt", "evaluate")
    plan = make_plan(
        config.encryption.scheme,
        config.encryption.bits,
        max(1, min(len(names), config.rounds.sites or len(names))),
        method.up.length,
        config.encryption.masked,
    )
    return Summary(
        run=config.name,
        run_id=run_id,
        task=config.task,
        rounds=len(rounds),
        sites=len(names),
        site_names=list(names),
        site_titles=titles or {},
        metrics=(last.metrics if last else None) or {},
        metrics_before=(first.metrics if first else None) or {},
        site_metrics=at_sites[-1] if at_sites else {},
        site_quality=_site_quality(config, reports),
        privacy={
            "epsilon": max(spent.values(), default=config.privacy.epsilon)
            if config.private
            else None,
            "promised": config.privacy.epsilon,
            "delta": config.privacy.delta,
            "unit": config.unit,
            "noise": mechanism_of(config).wording.noise,
            "sites": spent,
            "colluders_epsilon": colluders_epsilon,
        },
        encryption={
            "scheme": plan.scheme,
            "masks": plan.masked,
            "bits": plan.bits,
            "bytes_up_per_parameter": plan.update_bytes / plan.length,
            "expansion_vs_fp32": plan.expansion,
            "security_bits": plan.security_bits,
            "poly_degree": plan.poly_degree,
            "coeff_bits": list(plan.coeff_bits),
        },
        seconds={
            "total": total_s,
            **{name: sum(r.seconds.get(name) or 0.0 for r in rounds) for name in phases},
        },
        bytes_up=sum(r.bytes_up for r in rounds),
        bytes_down=sum(r.bytes_down for r in rounds),
        adapter_sha256=hashlib.sha256(adapter.astype("<f4").tobytes()).hexdigest(),
        model={
            "path": config.model.path,
            "fingerprint": model.files_fingerprint,
            "quantization": config.model.quantization,
            "parameters": model.number_of_parameters,
            "method": model.method if model.adapts_layers else None,
            "adapter_parameters": method.own.length,
            "sent_parameters": max(up.length for up in sent_in_turn(model)),
            **model.shape,
        },
        started_from=dict(started_from or {}),
        versions=_versions(),
        started=reports[0].started if reports else "",
        finished=utc_now(),
        simulated=simulated,
    )


def _site_quality(config: RunConfig, reports: Sequence[RoundReport]) -> dict[str, Any]:
    told = [report.site_parts for report in reports if report.site_parts]
    if config.evaluation.parts is None or not told:
        return {}
    ends = {"first": told[0], "last": told[-1]} if len(told) > 1 else {"last": told[-1]}
    parts = {
        name: {when: figures.get(name, {}) for when, figures in ends.items()} for name in told[-1]
    }
    return {config.evaluation.parts: parts}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("flwr", "torch", "opacus", "peft", "transformers", "tenseal", "cryptography")
    return {"fedllm": __version__, **{name: version(name) for name in names}}
