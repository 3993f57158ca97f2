"""The time of day, for records that people read; no decision depends on it."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def utc_minute() -> str:
    """Return the time in UTC as ISO 8601, to the minute."""
    return datetime.now(UTC).isoformat(timespec="minutes")
