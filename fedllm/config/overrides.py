"""Single keys of a configuration, set on the command line (``--set``)."""

from __future__ import annotations

import json
from typing import Any

from fedllm.config.toml import parse_toml
from fedllm.errors import ConfigError


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Return ``values`` with each ``section.key=value`` of ``overrides`` set.

    A value is read as TOML (``3``, ``true``, ``["a"]``); what is not TOML is a string.
    Nothing after the sign removes the key, so that its default holds again.

    Raises
    ------
    ConfigError
        If an override has no ``=`` or goes through a key that is no section.
    """
    result = json.loads(json.dumps(values, default=str))
    for override in overrides:
        key, sign, text = override.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise ConfigError(
                f"--set {override}: expected KEY=VALUE", "for example --set privacy.epsilon=3"
            )
        target = result
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {override}: '{part}' is a value, not a section")
        if not text.strip():
            target.pop(parts[-1], None)
            continue
        try:
            target[parts[-1]] = parse_toml(f"x = {text}")["x"]
        except ValueError:
            target[parts[-1]] = text
    return result
