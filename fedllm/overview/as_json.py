"""How a site stands as plain values, for scripts."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from fedllm.overview.budget import Budget
from fedllm.overview.standing import Standing
from fedllm.overview.wording import forecast_words, state_of


def as_json(standing: Standing) -> dict[str, Any]:
    """Return plain values; an infinite epsilon is null."""
    kit, service = standing.kit, standing.service
    held = {"paused": standing.paused, "stopping": standing.ending}
    return {
        "site": kit.name,
        "shown": kit.shown,
        "federation": kit.federation,
        "coordinator": kit.address,
        "state": state_of(standing).word,
        "service": {
            "running": service.runs,
            "since": service.since or None,
            "connected": service.connected,
            "version": service.version or None,
        },
        **{name: None if one is None else asdict(one) for name, one in held.items()},
        "round": None if standing.running is None else asdict(standing.running),
        "budget": None if standing.budget is None else _budget(standing.budget),
        "sent": [asdict(one) for one in standing.traffic.sent],
        "refused": [asdict(one) for one in standing.traffic.refused],
        "policy": {"file": str(standing.policy_file), "changed_since_start": standing.changed},
        "problems": [asdict(one) for one in standing.troubles],
    }


def _budget(budget: Budget) -> dict[str, Any]:
    forecast = budget.forecast
    return {
        "account": budget.account or None,
        "protects_each": budget.unit,
        "ceiling": _finite(budget.ceiling.epsilon),
        "delta": budget.ceiling.delta,
        "spent": _finite(budget.spent),
        "reserved": _finite(budget.reserved),
        "left": _finite(budget.left),
        "spent_against_colluders": _finite(budget.colluders),
        "charges": len(budget.charges),
        "charges_without_result": budget.open,
        "forecast": {
            "rounds": forecast.rounds,
            "more": forecast.more,
            "words": forecast_words(forecast),
        },
        "head": str(budget.head),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
