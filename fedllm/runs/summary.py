"""What a run comes to: ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from fedllm.files import write_json
from fedllm.identity.titles import shown
from fedllm.privacy.accounting.words import epsilon_text
from fedllm.runs.lineage import ancestors, names, spent_together
from fedllm.runs.metrics import Figures
from fedllm.runs.names import SUMMARY
from fedllm.runs.plain_json import damaged, finite, read_object
from fedllm.visible import visible

_MOST_SITES, _MOST_PARTS = 12, 3

DIVERGED = (
    "a figure of the last evaluation is not a number; its epsilon is spent all the same. "
    "Lower training.learning_rate or rounds.learning_rate"
)


# Left out where they say nothing, as before there was any of it.
_LATER = ("site_titles", "started_from", "quality", "site_quality", "alignment")


class Summary(BaseModel):
    """The figures of a finished run; written as ``summary.json``.

    Every key is written, ``site_titles``, ``started_from``, ``quality``, ``site_quality`` and
    ``alignment`` only where there is any; one that an older or newer version lacks is empty when it
    is read.

    Attributes
    ----------
    run : str
        The run's name; ``run_id`` is its random identifier, which stands in the ledgers.
    site_titles : dict
        Names of sites for people, in any script, for those that have one.
    metrics : dict
        Test metrics of the shared model after the last round; ``metrics_before`` of the
        untrained adapter.
    site_metrics : dict
        The same on records that the sites hold out; empty without `evaluation.every`.
    privacy : dict
        ``epsilon`` (the largest of all sites; what was promised where only the sites know
        what they spent; None without a bound), ``delta``, ``unit``, ``noise``, ``sites``
        (epsilon of each), ``promised`` (what was asked for), ``colluders_epsilon`` (the largest
        against all others together, where noise is shared and the sites are known).
    encryption : dict
        ``scheme``, ``bytes_up_per_parameter``, ``expansion_vs_fp32``, ``security_bits``.
    seconds : dict
        ``total`` of the command that wrote this; the others are sums over all rounds.
    started_from : dict
        Of a run that went on from an earlier run's adapter: ``adapter`` (SHA-256 of its files),
        ``head`` (whether the head was taken over), and where they are known ``run``, ``run_id``,
        ``epsilon`` and ``delta`` of the earlier run, and ``chain``: that run and all that it goes
        back to, the nearest first (`fedllm.runs.lineage.Ancestor`). A record that took part in
        several spent the epsilon of each; a site's ledger adds up what was charged to it.
    quality : dict
        By "label" or "group" of the public test file (`data.group`), then by name: test metrics
        ``after`` the run and, where it began untrained, ``before``.
    site_quality : dict
        By "label" or "group" (``evaluation.parts``), then by name: what the sites' held-out records
        said in the ``last`` evaluation and, where there was an earlier one, in the ``first``, with
        noise as in ``site_metrics``; empty where it left too little.
    alignment : dict
        Of an alignment on public prompts (`fedllm.alignment`), in which no site took part:
        ``algorithm``, ``steps``, ``kept_step``, ``ended`` (why), ``win_rate`` and ``reward_gain``
        with intervals, ``reward`` and ``judge`` (the runs of both models), ``prompts`` (counts).
    started, finished : str
        When the run was first begun, and when this was written; UTC, ISO 8601.
    simulated : bool
        Whether all parties were played on one machine.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")

    run: str = ""
    run_id: str = ""
    task: str = ""
    rounds: int = 0
    sites: int = 0
    site_names: list[str] = []
    site_titles: dict[str, str] = {}
    metrics: Figures = {}
    metrics_before: Figures = {}
    site_metrics: Figures = {}
    privacy: dict[str, Any] = {}
    encryption: dict[str, Any] = {}
    seconds: Figures = {}
    bytes_up: int = 0
    bytes_down: int = 0
    adapter_sha256: str = ""
    model: dict[str, Any] = {}
    versions: dict[str, str] = {}
    started_from: dict[str, Any] = {}
    quality: dict[str, Any] = {}
    site_quality: dict[str, dict[str, dict[str, Figures]]] = {}
    alignment: dict[str, Any] = {}
    started: str = ""
    finished: str = ""
    simulated: bool = False

    @model_serializer(mode="wrap")
    def _without_what_is_new(self, inner: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = inner(self)
        return {k: v for k, v in values.items() if k not in _LATER or v}

    @model_validator(mode="before")
    @classmethod
    def _only_finite(cls, value: Any) -> Any:
        return finite(value)

    @field_validator("privacy")
    @classmethod
    def _sites_have_numbers(cls, value: dict[str, Any]) -> dict[str, Any]:
        sites = value.get("sites", {})
        if not isinstance(sites, dict):
            raise ValueError("'privacy.sites' is not a table of numbers")
        for site, spent in sites.items():
            # Null is what an epsilon without a bound was written as.
            if isinstance(spent, bool) or not isinstance(spent, int | float | None):
                raise ValueError(f"'privacy.sites.{site}' is not a number")
        return value

    def describe(self, folder: Path) -> str:
        """Say the main figures in a few lines."""
        figures = "  ".join(
            f"{name} {_shown(self.metrics_before.get(name))} -> {_shown(value)}"
            for name, value in self.metrics.items()
            if name in ("loss", "accuracy", "f1", "recall", "perplexity")
        )
        lines = [
            f"{self.run}: {self.rounds} rounds, {self.sites} sites, "
            f"{self.seconds.get('total') or 0:.0f} s",
            f"  test        {figures or 'no public test file'}",
            *self._at_sites(),
            *self._sites(),
            f"  privacy     {self._privacy()}",
            *self._colluders(),
            *self._start(),
            f"  encryption  {self._encryption()}",
            f"  folder      {folder}",
        ]
        if None in self.metrics.values():
            lines.append(f"  the model DIVERGED: {DIVERGED}")
        return "\n".join(lines)

    def _privacy(self) -> str:
        told = self.privacy
        spent = told.get("epsilon")
        if spent is None and told.get("promised") is None:
            return "NONE: this run was not private"
        bound = "unlimited" if spent is None else f"{epsilon_text(spent)} at most"
        return (
            f"epsilon {bound}, delta {told.get('delta', 0):g}, "
            f"for each {told.get('unit')}; noise {told.get('noise')}"
        )

    def _at_sites(self) -> list[str]:
        """Say of which labels or groups the sites' held-out records tell the least."""
        return [
            visible(f"  {f'by {kind}':<11} {_worst({n: f.get('last', {}) for n, f in of.items()})}")
            for kind, of in self.site_quality.items()
        ]

    def _sites(self) -> list[str]:
        """Say which name is whose, where people write another than files do."""
        if not self.site_titles:
            return []
        named = [shown(name, self.site_titles) for name in self.site_names]
        more = f" and {len(named) - _MOST_SITES} more" if len(named) > _MOST_SITES else ""
        return [visible(f"  sites       {', '.join(named[:_MOST_SITES])}{more}")]

    def _colluders(self) -> list[str]:
        value, against_sums = (self.privacy.get(key) for key in ("colluders_epsilon", "epsilon"))
        if value is None or against_sums is None or value <= against_sums:
            return []
        words = f"epsilon {epsilon_text(value)}, if all others put what they have together"
        return [f"              against one site: {words}"]

    def _start(self) -> list[str]:
        if not self.started_from:
            return []
        name = self.started_from.get("run") or "an adapter"
        words = f"from {name} ({str(self.started_from.get('adapter'))[:16]})"
        earlier = ancestors(self.started_from)
        if before := earlier[1:]:
            words += f", which goes back to {names(before, 'what is not known')}"
        if self.privacy.get("promised") is not None:
            spent = spent_together(earlier, str(self.privacy.get("unit")))
            if spent is None:
                words += "; what that adapter tells of its own records no epsilon bounds"
            elif before:
                words += (
                    "; a record that took part in all spent the epsilon of all: "
                    f"{epsilon_text(spent)} before this run"
                )
            else:
                words += "; a record that took part in both spent the epsilon of both"
        return [visible(f"  started     {words}")]

    def _encryption(self) -> str:
        told = self.encryption
        if told.get("scheme", "none") == "none":
            return "NONE: the coordinator saw every site's update"
        return (
            f"{told['scheme']}, {told.get('bytes_up_per_parameter', 0):.2f} bytes up for each "
            f"trained parameter ({told.get('expansion_vs_fp32', 0):.2f} times fp32)"
        )


def write_summary(folder: Path, summary: Summary) -> None:
    """Write ``summary.json``, durably."""
    write_json(folder / SUMMARY, finite(summary.model_dump(mode="json")))


def read_summary(folder: Path) -> Summary:
    """Read a run folder's ``summary.json``.

    Raises
    ------
    FedllmError
        If it is missing or damaged; names the file and the key.
    """
    path = folder / SUMMARY
    try:
        return Summary.model_validate(read_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise damaged(
            str(path), reason if reason.startswith("'") else f"'{key}': {reason}"
        ) from None


def _shown(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


def _worst(parts: Mapping[str, Figures]) -> str:
    """Name the parts of which the sites' held-out records say the least good figures."""
    measures = ("f1", "accuracy", "loss")
    measure = next((m for m in measures if any(m in of for of in parts.values())), "loss")
    sign = -1 if measure == "loss" else 1
    told = sorted(
        (sign * value, name) for name, of in parts.items() if (value := of.get(measure)) is not None
    )
    words = [
        f"{name} {_shown(sign * value)} ± {_shown(parts[name].get(f'{measure}_noise'))}"
        for value, name in told[:_MOST_PARTS]
    ]
    if len(told) > _MOST_PARTS:
        words.append(f"{len(told) - _MOST_PARTS} better ones")
    if few := len(parts) - len(told):
        words.append(f"{few} with too few held-out units to tell")
    return f"{measure} at the sites: {', '.join(words)}"
