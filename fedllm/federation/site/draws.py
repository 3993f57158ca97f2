"""What a site drew neighbours for: each attempt once, and not without end."""

from __future__ import annotations

from fedllm.errors import RefusedError
from fedllm.federation.protocol.round_statement import RoundStatement

# Each draw is a chance of 2**-50 at most for a coalition; see `encryption.sparse`.
MOST_DRAWS = 1024
# A coordinator may name as many runs as it likes.
MOST_RUNS = 1024


class Draws:
    """Remembers, while a site runs, for which statements it drew its neighbours."""

    def __init__(self) -> None:
        self._drawn: dict[str, dict[int, str]] = {}

    def add(self, statement: RoundStatement) -> None:
        """Note that this site draws for a statement; the same one may be asked again.

        Raises
        ------
        RefusedError
            If it drew for another one of the same attempt, or too often in this series (a run's
            training, or its evaluations), or in too many series.
        """
        if statement.series not in self._drawn and len(self._drawn) >= MOST_RUNS:
            raise RefusedError(
                f"this site has drawn its neighbours in {MOST_RUNS} runs since it was started",
                "restart the site's service",
            )
        drawn = self._drawn.setdefault(statement.series, {})
        known = drawn.get(statement.attempt)
        if known is None and len(drawn) >= MOST_DRAWS:
            raise RefusedError(
                f"this site has drawn its neighbours {MOST_DRAWS} times in this run",
                "start a new run",
            )
        if known not in (None, statement.digest):
            raise RefusedError(
                f"attempt {statement.attempt} was opened before, with another cohort or order",
                "ask under a new attempt",
            )
        drawn[statement.attempt] = statement.digest
