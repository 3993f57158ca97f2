"""What libraries read from the environment when they are imported; what is set there stays."""

from __future__ import annotations

import os

_DEFAULTS = {
    # No usage statistics leave a hospital's network.
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    # Waiting threads that spin take the cores from those that work.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_defaults() -> None:
    """Set what nobody has set; of use before flwr, ray, transformers and torch are imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
