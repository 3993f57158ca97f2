"""What a run begins from at the coordinator: a checkpoint, an earlier run's adapter, or nothing."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedllm.adapters import adapter_of
from fedllm.config import RunConfig
from fedllm.models.shared import SharedModel
from fedllm.models.start import take_over
from fedllm.runs.checkpoints import RunState
from fedllm.runs.folder import config_digest
from fedllm.runs.start import StartedFrom
from fedllm.tasks.beginning import begin


def starting_state(
    config: RunConfig,
    model: SharedModel,
    found: RunState | None,
    test: str = "",
    start: StartedFrom | None = None,
) -> RunState:
    """Return the state to begin from: the newest checkpoint, or a fresh run where there is none.

    ``test`` is the `public_digest` of the run; a checkpoint of an earlier version lacks it.
    ``start`` is the adapter of an earlier run that a fresh one goes on from.

    Raises
    ------
    ConfigError
        If that adapter does not fit the run, or public texts are wanted that nobody named.
    DataError
        If these cannot be read, or say too little.
    """
    if found is not None:
        return replace(found, labels=model.labels, test=test)
    adapter, told = _first_adapter(config, model, start)
    return RunState(
        secrets.token_hex(8),
        0,
        (),
        config_digest(config),
        adapter,
        model=model.fingerprint,
        labels=model.labels,
        test=test,
        started_from=told,
    )


def _first_adapter(
    config: RunConfig, model: SharedModel, start: StartedFrom | None
) -> tuple[NDArray[np.float32], dict[str, Any] | None]:
    method = adapter_of(model)
    if start is None:
        begin(config, model)
        return method.start(), None
    method.place(method.start())
    head = take_over(model, start.folder)
    model.reference.take_over()
    return method.held(), {**start.about, "head": head}
