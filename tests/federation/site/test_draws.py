"""A site draws its neighbours once for each attempt, and not without end."""

from __future__ import annotations

import pytest

from fedllm.errors import RefusedError
from fedllm.federation.protocol.round_statement import RoundStatement
from fedllm.federation.site import draws
from fedllm.federation.site.draws import Draws

TEXTS = ("plan", "key", "reveal_key", "config", "labels", "bounds", "model", "adapter")


def statement(run: str = "one", attempt: int = 1, **changes) -> RoundStatement:
    values = {"round": 1, "rounds": 9, "cohort": (), "members": "", "min_sites": 2}
    texts = dict.fromkeys(TEXTS, "")
    return RoundStatement(run=run, attempt=attempt, **values, **(texts | changes))


def refused(found: Draws, asked: RoundStatement) -> tuple[str, str | None]:
    with pytest.raises(RefusedError) as caught:
        found.add(asked)
    return caught.value.message, caught.value.remedy


def test_an_attempt_is_drawn_for_again_and_for_nothing_else():
    found = Draws()
    for _ in range(2):
        found.add(statement())
    assert refused(found, statement(plan="other")) == (
        "attempt 1 was opened before, with another cohort or order",
        "ask under a new attempt",
    )
    # The evaluations of a run are numbered on their own.
    found.add(statement(purpose="evaluation"))
    found.add(statement(attempt=2))
    found.add(statement())


def test_a_run_has_so_many_draws_and_one_that_was_made_is_made_again(monkeypatch):
    assert draws.MOST_DRAWS == 1024
    monkeypatch.setattr(draws, "MOST_DRAWS", 3)
    found = Draws()
    for attempt in (1, 2, 3):
        found.add(statement(attempt=attempt))
    assert refused(found, statement(attempt=4)) == (
        "this site has drawn its neighbours 3 times in this run",
        "start a new run",
    )
    found.add(statement(attempt=1))
    found.add(statement("two", attempt=4))


def test_so_many_runs_are_drawn_for_until_the_site_is_started_anew(monkeypatch):
    assert draws.MOST_RUNS == 1024
    monkeypatch.setattr(draws, "MOST_RUNS", 2)
    found = Draws()
    for run in ("one", "two"):
        found.add(statement(run))
    assert refused(found, statement("three")) == (
        "this site has drawn its neighbours in 2 runs since it was started",
        "restart the site's service",
    )
    found.add(statement("one", attempt=2))
    Draws().add(statement("three"))
