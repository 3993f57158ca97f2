"""The technical parts of a run's report: time, encryption, fingerprints, every figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fedllm.audit.installation import installed_versions
from fedllm.audit.report.numbers import flat, is_number, number
from fedllm.canonical import sha256_hex
from fedllm.runs.names import RUN_TOML, SUMMARY
from fedllm.runs.record import RunFolder

_TOLD = ("quality", "site_quality")
PHASES = ("train", "encrypt", "aggregate", "decrypt", "evaluate")


class TechnicalParts:
    """What engineers and auditors ask for, each as plain values ready for the template."""

    def __init__(self, run: RunFolder, texts: Mapping[str, Any]) -> None:
        self._run = run
        self._config = run.config
        self._summary = run.summary
        self._texts = texts

    def parts(self) -> dict[str, Any]:
        """Return every part by the name that the template has for it."""
        # Quality by label has tables of its own.
        summary = {key: value for key, value in self._summary.items() if key not in _TOLD}
        return {
            "time": list(self._time()),
            "encryption": list(self._encryption()),
            "origin": self._origin(),
            "appendix": list(flat(summary, self._texts["appendix"]["more"])),
        }

    def _time(self) -> Iterator[SimpleNamespace]:
        texts = self._texts["time"]
        recorded = {k: float(v) for k, v in self._run.section("seconds").items() if is_number(v)}
        for phase in PHASES:
            if phase not in recorded:
                values = [r.seconds[phase] for r in self._run.rounds if phase in r.seconds]
                recorded |= {phase: sum(values)} if values else {}
        parts = {name: value for name, value in recorded.items() if name != "total"}
        # Parts of sites that worked side by side, or of earlier commands, may exceed it.
        rest = recorded.get("total", 0.0) - sum(parts.values())
        if rest > 0:
            parts["rest"] = rest
        whole = sum(parts.values())
        for name, value in parts.items():
            share = 100 * value / whole if whole > 0 else 0.0
            yield SimpleNamespace(
                name=texts.get(name, name),
                seconds=f"{value:,.2f}",
                share=f"{share:.1f}%",
                percent=round(share, 1),
            )
        if "total" in recorded:
            total = f"{recorded['total']:,.2f}"
            yield SimpleNamespace(name=texts["total"], seconds=total, share="", percent=None)

    def _encryption(self) -> Iterator[tuple[str, str]]:
        texts, config = self._texts["encryption"], self._config.encryption
        known: dict[str, Any] = {"scheme": config.scheme}
        if config.scheme == "bfv":
            known |= {"bits": config.bits, "masks": config.masked}
        totals = {k: self._summary[k] for k in ("bytes_up", "bytes_down") if k in self._summary}
        for key, value in {**known, **self._run.section("encryption")}.items():
            if isinstance(value, list):
                shown = ", ".join(map(str, value))
            elif isinstance(value, bool):
                shown = texts["yes" if value else "no"]
            else:
                shown = number(value) if is_number(value) else str(value)
            yield texts.get(key, key), shown
        for key, value in totals.items():
            yield texts[key], number(value)

    def _origin(self) -> SimpleNamespace:
        texts, model = self._texts["origin"], self._run.section("model")
        named = (
            ("model", model.get("fingerprint")),
            ("adapter", self._summary.get("adapter_sha256")),
            ("started_from", self._run.section("started_from").get("adapter")),
            ("run_toml", _sha256(self._run.path / RUN_TOML)),
            ("summary", _sha256(self._run.path / SUMMARY)),
            ("seed", self._config.seed),
        )
        rows = [(texts[key], str(value)) for key, value in named if value is not None]
        recorded = self._run.section("versions")
        versions = {k: str(v) for k, v in recorded.items()} or installed_versions()
        note = texts["versions_recorded" if recorded else "versions_here"]
        return SimpleNamespace(rows=[*rows, *versions.items()], note=note)


def _sha256(path: Path) -> str:
    return sha256_hex(path.read_bytes())
