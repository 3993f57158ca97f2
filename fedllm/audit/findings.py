"""What an audit found, with how bad it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["critical", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a reader must know.

    Attributes
    ----------
    severity : {"critical", "warning", "note"}
        "critical": a promise does not hold, or cannot be believed. "warning": a promise is
        weaker than a reader may think. "note": worth knowing.
    subject : str
        The file, site or run that it is about.
    text : str
        The finding in English.
    """

    severity: Severity
    subject: str
    text: str

    def to_json(self) -> dict[str, str]:
        """Return plain values."""
        return {"severity": self.severity, "subject": self.subject, "text": self.text}


def worst_first(findings: list[Finding]) -> list[Finding]:
    """Order findings by severity, otherwise as they are."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
