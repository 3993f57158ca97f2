"""A run's folder together with what audits left in it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedllm.audit.attacks.results import (
    CanaryResult,
    EpsilonResult,
    ExtractionResult,
    MembershipResult,
    load,
)
from fedllm.runs.record import RunFolder


@dataclass(frozen=True)
class Audited:
    """A run and the audits in its folder."""

    run: RunFolder
    epsilon: EpsilonResult | None
    canaries: CanaryResult | None
    membership: MembershipResult | None
    extraction: ExtractionResult | None

    @classmethod
    def of(cls, run: RunFolder) -> Audited:
        """Read a run folder's ``audit/``.

        Raises
        ------
        FedllmError
            If a result is damaged.
        """
        return cls(
            run,
            load(run.path, "epsilon", EpsilonResult),
            load(run.path, "canaries", CanaryResult),
            load(run.path, "membership", MembershipResult),
            load(run.path, "extraction", ExtractionResult),
        )

    @property
    def spent(self) -> float | None:
        """Largest epsilon that the run recorded, perhaps infinite; none without privacy."""
        return max(self.run.epsilon.values(), default=None)

    @property
    def recomputed(self) -> float | None:
        """Largest recomputed epsilon of all sites, over all runs on their records.

        None where nothing was recomputed, infinite where some site's is unlimited.
        """
        if self.epsilon is None or not self.run.config.private:
            return None
        found = [math.inf if s.recomputed is None else s.recomputed for s in self.epsilon.sites]
        return max(found, default=None)

    def lower_bound(self, kind: str) -> float | None:
        """Return what canaries of one kind showed."""
        attacks = self.canaries.attacks if self.canaries else ()
        return next((attack.epsilon for attack in attacks if attack.kind == kind), None)
