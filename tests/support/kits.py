"""A federation in a folder, with kits for all parties."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from fedllm.config import parse
from fedllm.identity.config import FederationConfig
from fedllm.identity.issuing import Provisioned
from fedllm.identity.provisioning import provision


def federation_config(**keys: Any) -> FederationConfig:
    values = {"name": "north", "sites": ["anne", "bob"], "coordinator": {"hosts": ["127.0.0.1"]}}
    return parse(FederationConfig, values | keys, "test")


def make_federation(folder: Path, now: datetime | None = None, **keys: Any) -> Provisioned:
    return provision(federation_config(**keys), folder, now)
