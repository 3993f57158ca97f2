"""What a run comes to that was cut off: the attempt that was under way is never made again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedllm.errors import PeerError
from fedllm.runs.checkpoints import load_checkpoint
from fedllm.runs.summary import Summary
from fedllm_server.loop import RoundLoop


def attempt_under_way(out: Path) -> int | None:
    """Return the attempt that a run was in when it was cut off; None between two rounds."""
    state = load_checkpoint(out / "checkpoints")
    if state is None or len(state.noise) == state.round:
        return None
    return len(state.noise)


def with_a_failed_attempt(attempt: int | None, run: Callable[[], Summary]) -> Summary:
    """Do a whole run whose attempt of this number fails before anybody is asked.

    What a resumed run must come to: each attempt draws anew, so that no two sums of the same
    batch can be subtracted.
    """
    right = RoundLoop._attempt

    def fails(self, state, number, noise):
        if len(state.noise) == attempt:
            raise PeerError("as if this attempt had been cut off")
        return right(self, state, number, noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundLoop, "_attempt", fails)
        return run()
