"""Federated, private, encrypted fine-tuning of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedllm.api.configuring import configure
    from fedllm.api.run import Run, compare, list_runs, open_run
    from fedllm.api.simulating import follow, simulate, simulate_rounds
    from fedllm.config import RunConfig
    from fedllm.errors import FedllmError
    from fedllm.runs.metrics import RoundReport

__version__ = "0.1.0"

__all__ = [
    "FedllmError",
    "RoundReport",
    "Run",
    "RunConfig",
    "__version__",
    "compare",
    "configure",
    "follow",
    "list_runs",
    "open_run",
    "simulate",
    "simulate_rounds",
]

# Where each name is. Nothing is imported before it is asked for: the command line begins here too.
_PLACES = {
    "FedllmError": "fedllm.errors",
    "RoundReport": "fedllm.runs.metrics",
    "Run": "fedllm.api.run",
    "RunConfig": "fedllm.config",
    "compare": "fedllm.api.run",
    "configure": "fedllm.api.configuring",
    "follow": "fedllm.api.simulating",
    "list_runs": "fedllm.api.run",
    "open_run": "fedllm.api.run",
    "simulate": "fedllm.api.simulating",
    "simulate_rounds": "fedllm.api.simulating",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'fedllm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
