"""Which method adapts a model: the only place that decides it."""

from __future__ import annotations

from fedllm.adapters.method import AdapterMethod
from fedllm.adapters.plain import PlainAdapter
from fedllm.models.shared import SharedModel


def adapter_of(model: SharedModel) -> AdapterMethod:
    """Return the method by which a run adapts its model."""
    return PlainAdapter(model)
