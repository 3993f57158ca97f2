"""Single keys of a configuration, set on the command line (``--set``)."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from fedllm.config.parsing import without_passwords
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
    result = _plain_copy(values)
    for override in overrides:
        key, sign, text = override.partition("=")
        parts = key.strip().split(".")
        if not sign or not all(parts):
            raise ConfigError(
                f"--set {without_passwords(override)}: expected KEY=VALUE",
                "for example --set privacy.epsilon=3",
            )
        target = result
        for part in parts[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"--set {key}: '{part}' is a value, not a section")
        if not text.strip():
            target.pop(parts[-1], None)
            continue
        try:
            target[parts[-1]] = _plain_copy(tomllib.loads(f"x = {text}"))["x"]
        except (tomllib.TOMLDecodeError, RecursionError):
            target[parts[-1]] = text
        except ValueError:
            raise ConfigError(f"--set {key}: the number is too long", "use a shorter one") from None
    return result


def _plain_copy(values: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without shared parts, dates as text."""
    try:
        return dict(json.loads(json.dumps(values, default=str)))
    except (ValueError, RecursionError):
        raise ConfigError(
            "a number of the configuration is too long, or it is nested too deep",
            "look at the numbers written in hexadecimal",
        ) from None
