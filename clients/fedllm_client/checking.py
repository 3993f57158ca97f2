"""What a check of a site found, and how a check says it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from fedllm.errors import FedllmError

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class CheckResult:
    """One line of the table.

    Attributes
    ----------
    check : str
        What was tried.
    state : {"ok", "warning", "failed", "skipped"}
        How it went.
    found : str
        What was found, in words that hold no text of a record.
    remedy : str
        What to do; empty when nothing has to be done.
    exit_code : int
        0, or that of the error.
    """

    check: str
    state: State
    found: str
    remedy: str = ""
    exit_code: int = 0


class DoubtError(FedllmError):
    """Something that works today and should be seen to."""


class SkippedError(FedllmError):
    """Something that cannot be tried before another failure is mended."""


def carry_out(check: str, function: Callable[[], str]) -> CheckResult:
    """Make a check, and say how it went; no error of it goes any further."""
    try:
        return CheckResult(check, "ok", function())
    except SkippedError as skipped:
        return CheckResult(check, "skipped", skipped.message, skipped.remedy)
    except DoubtError as doubt:
        return CheckResult(check, "warning", doubt.message, doubt.remedy)
    except FedllmError as error:
        return CheckResult(check, "failed", error.message, error.remedy, error.exit_code)
    except Exception as error:
        # Other libraries' texts may quote a record.
        kind = type(error).__name__
        return CheckResult(check, "failed", f"broke off ({kind})", "tell an engineer the kind", 1)
