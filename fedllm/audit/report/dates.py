"""When a run was, and when its report was made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import SimpleNamespace

from fedllm import __version__
from fedllm.runs.record import RunFolder


def dates_part(run: RunFolder, made: datetime, texts: Mapping[str, str]) -> SimpleNamespace:
    """Return the dates as plain values; ``texts`` is their section of the catalogue."""
    began, ended = (run.time(key) for key in ("started", "finished"))
    lines = [
        texts[known].format(time=_written(value)) if value else texts[unknown]
        for known, unknown, value in (("began", "no_began", began), ("ended", "no_ended", ended))
    ]
    lines.append(texts["made"].format(time=_written(made), version=__version__))
    return SimpleNamespace(
        lines=lines,
        began=began and began.isoformat(timespec="seconds"),
        ended=ended and ended.isoformat(timespec="seconds"),
        made=made.isoformat(timespec="seconds"),
    )


def _written(time: datetime) -> str:
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
