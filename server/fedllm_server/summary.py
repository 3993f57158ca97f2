"""What a run comes to: ``summary.json``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from fedllm import __version__
from fedllm.clock import utc_now
from fedllm.config import RunConfig
from fedllm.encryption.plan import make_plan
from fedllm.files import write_json
from fedllm.models.shared import SharedModel
from fedllm_server.metrics import RoundReport


class Summary(BaseModel):
    """The figures of a finished run; written as ``summary.json``.

    Attributes
    ----------
    run : str
        The run's name; ``run_id`` is its random identifier, which stands in the ledgers.
    metrics : dict
        Test metrics of the shared model after the last round; ``metrics_before`` of the
        untrained adapter.
    site_metrics : dict
        The same on records that the sites hold out; empty without `evaluation.every`.
    privacy : dict
        ``epsilon`` (the largest of all sites; what was promised where only the sites know
        what they spent), ``delta``, ``unit``, ``noise``, ``sites``
        (epsilon of each), ``promised`` (what was asked for).
    encryption : dict
        ``scheme``, ``bytes_up_per_parameter``, ``expansion_vs_fp32``, ``security_bits``.
    seconds : dict
        ``total`` of the command that wrote this; the others are sums over all rounds.
    started, finished : str
        When the run was first begun, and when this was written; UTC, ISO 8601.
    simulated : bool
        Whether all parties were played on one machine.
    """

    model_config = ConfigDict(frozen=True)

    run: str
    run_id: str
    task: str
    rounds: int
    sites: int
    site_names: list[str]
    metrics: dict[str, float]
    metrics_before: dict[str, float]
    site_metrics: dict[str, float] = {}
    privacy: dict[str, Any]
    encryption: dict[str, Any]
    seconds: dict[str, float]
    bytes_up: int
    bytes_down: int
    adapter_sha256: str
    model: dict[str, Any]
    versions: dict[str, str]
    started: str = ""
    finished: str = ""
    simulated: bool = False

    def describe(self, folder: Path) -> str:
        """Say the main figures in a few lines."""
        figures = "  ".join(
            f"{name} {self.metrics_before.get(name, float('nan')):.4f} -> {value:.4f}"
            for name, value in self.metrics.items()
            if name in ("loss", "accuracy", "perplexity")
        )
        privacy = (
            f"epsilon {self.privacy['epsilon']:.2f} at most, delta {self.privacy['delta']:g}, "
            f"for each {self.privacy['unit']}; noise {self.privacy['noise']}"
            if self.privacy["epsilon"] is not None
            else "NONE: this run was not private"
        )
        scheme = self.encryption["scheme"]
        sealed = (
            f"{scheme}, {self.encryption['bytes_up_per_parameter']:.2f} bytes a parameter "
            f"({self.encryption['expansion_vs_fp32']:.2f} times fp32)"
            if scheme != "none"
            else "NONE: the coordinator saw every site's update"
        )
        return "\n".join(
            [
                f"{self.run}: {self.rounds} rounds, {self.sites} sites, "
                f"{self.seconds['total']:.0f} s",
                f"  test        {figures or 'no public test file'}",
                f"  privacy     {privacy}",
                f"  encryption  {sealed}",
                f"  folder      {folder}",
            ]
        )


def make_summary(
    config: RunConfig,
    model: SharedModel,
    run_id: str,
    names: tuple[str, ...],
    reports: list[RoundReport],
    total_s: float,
    simulated: bool = False,
) -> Summary:
    """Put the figures of all rounds together."""
    measured = [report for report in reports if report.metrics]
    at_sites = [report.site_metrics for report in reports if report.site_metrics]
    first = next((r for r in measured if r.round == 0), None)
    rounds = [report for report in reports if report.round]
    epsilons = rounds[-1].epsilon if rounds else {}
    phases = ("train", "encrypt", "aggregate", "decrypt", "evaluate")
    plan = make_plan(
        config.encryption.scheme,
        config.encryption.bits,
        len(names),
        model.manifest.length,
        config.encryption.masked,
    )
    return Summary(
        run=config.name,
        run_id=run_id,
        task=config.task,
        rounds=len(rounds),
        sites=len(names),
        site_names=list(names),
        metrics=(measured[-1].metrics if measured else None) or {},
        metrics_before=(first.metrics if first else None) or {},
        site_metrics=at_sites[-1] if at_sites else {},
        privacy={
            "epsilon": max(epsilons.values(), default=config.privacy.epsilon)
            if config.private
            else None,
            "promised": config.privacy.epsilon,
            "delta": config.privacy.delta,
            "unit": config.unit,
            "noise": config.privacy.noise if config.private else "none",
            "sites": epsilons,
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
            **{name: sum(r.seconds.get(name, 0.0) for r in rounds) for name in phases},
        },
        bytes_up=sum(r.bytes_up for r in rounds),
        bytes_down=sum(r.bytes_down for r in rounds),
        adapter_sha256=hashlib.sha256(model.adapter().astype("<f4").tobytes()).hexdigest(),
        model={
            "path": config.model.path,
            "fingerprint": model.fingerprint,
            "parameters": model.number_of_parameters,
            "adapter_parameters": model.manifest.length,
            **model.shape,
        },
        versions=_versions(),
        started=reports[0].started if reports else "",
        finished=utc_now(),
        simulated=simulated,
    )


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json``, durably."""
    write_json(folder / "summary.json", summary.model_dump(mode="json"))


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("flwr", "torch", "opacus", "peft", "transformers", "tenseal", "cryptography")
    return {"fedllm": __version__, **{name: version(name) for name in names}}
