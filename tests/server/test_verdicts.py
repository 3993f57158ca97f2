"""What the coordinator makes of a round's figures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fedllm.errors import TrainingError
from fedllm.federation.protocol.cohorts import CohortMember
from fedllm.runs.checkpoints import Good, RunState
from fedllm.runs.metrics import RoundReport
from fedllm_server.verdicts import (
    MOST_REJECTED,
    NormVerdict,
    judge_test,
    norm_verdict,
    require_progress,
    rising,
)

NAN, INF = float("nan"), float("inf")


def state(number: int, good: Good | None = None) -> RunState:
    adapter = np.full(2, number, dtype=np.float32)
    return RunState("run", number, (), "", adapter, {"steps": np.array([number])}, good=good)


def good(number: int, loss: float) -> Good:
    one = state(number)
    return Good(number, loss, one.adapter, one.optimizer)


@pytest.mark.parametrize("loss", [2.0, 0.5, 2.9, 3.0])
def test_what_is_not_much_worse_than_the_best_is_kept(loss):
    after, reason = judge_test(state(5, good(3, 2.0)), {"loss": loss}, 1.0)
    assert reason == ""
    assert (after.adapter[0], after.good.round, after.good.adapter[0]) == (5, 5, 5)
    assert after.good.optimizer["steps"] == 5
    # The best of all, not the last one: small rises must not add up.
    assert after.good.loss == min(loss, 2.0)


@pytest.mark.parametrize(
    ("loss", "shown"), [(3.01, "3.01"), (400.0, "400"), (None, "no number"), (INF, "no number")]
)
def test_what_is_much_worse_or_no_number_goes_back(loss, shown):
    after, reason = judge_test(state(5, good(3, 2.0)), {"loss": loss}, 1.0)
    assert f"is {shown}, and the best so far was 2; back to round 3" in reason
    assert (after.round, after.adapter[0], after.optimizer["steps"]) == (5, 3, 3)
    assert (after.good.round, after.good.loss) == (3, 2.0)


def test_where_nothing_was_good_nothing_is_gone_back_to():
    before = state(0)
    after, reason = judge_test(before, {"loss": None}, 1.0)
    assert (after, reason) == (before, "")
    after, reason = judge_test(before, {"loss": 50.0}, 1.0)
    assert (after.good.round, after.good.loss, reason) == (0, 50.0, "")


@pytest.mark.parametrize("loss", [50.0, None])
def test_a_rise_of_zero_is_never_rolled_back(loss):
    after, reason = judge_test(state(5, good(3, 2.0)), {"loss": loss}, 0.0)
    assert (after.adapter[0], reason) == (5, "")


def line(number: int, *reasons: str, measured: bool = True) -> RoundReport:
    metrics = {"loss": 1.0} if measured else None
    return RoundReport(round=number, metrics=metrics, rejected=dict.fromkeys(reasons, "so"))


BEFORE = line(0)


@pytest.mark.parametrize("reason", ["norm", "test"])
def test_three_in_a_row_stop_a_run_and_three_more_after_it_was_resumed(reason):
    reports = [BEFORE, *(line(number, reason) for number in range(1, 8))]
    stopped = []
    for count in range(1, len(reports) + 1):
        try:
            require_progress(reports[:count])
        except TrainingError as error:
            assert "the last because so; no further round is charged" in error.message
            assert "--resume" in error.remedy
            stopped.append(reports[count - 1].round)
    assert stopped == [3, 6]


@pytest.mark.parametrize(
    "reports",
    [
        [],
        [BEFORE],
        [BEFORE, line(1, "norm"), line(2, "norm"), line(3), line(4, "norm")],
        [BEFORE, line(1, "norm"), line(2, "test"), line(3, "norm")],
        # One that was not measured says nothing for or against those that were.
        [BEFORE, *(line(n, "test") for n in (1, 2, 3)), line(4, measured=False)],
    ],
)
def test_rounds_between_which_one_counted_do_not_stop_a_run(reports):
    require_progress(reports)


def test_rounds_that_were_not_measured_do_not_part_those_that_were():
    reports = [BEFORE]
    for number in range(1, 7):
        even = number % 2 == 0
        reports.append(line(number, *(["test"] if even else []), measured=even))
    with pytest.raises(TrainingError, match="3 rounds in a row"):
        require_progress(reports)


class Law:
    """Says the ratios that a test asks for, and keeps what it was asked."""

    def __init__(self, *ratios: float) -> None:
        self.found = np.array(ratios)
        self.asked: list = []

    def ratios(self, total, sizes):
        self.asked.append((total.tolist(), list(sizes)))
        return self.found


def verdict(law: Law | None, asked: list | None = None):
    sizes = {"anne": 11, "bob": 22, "carl": 33}
    members = [
        CohortMember(name=name, mask_key="", signature="", units=units)
        for name, units in sizes.items()
    ]

    def sum_law(*what):
        (asked if asked is not None else []).append(what)
        return law

    segments = [SimpleNamespace(name="low"), SimpleNamespace(name="high")]
    return norm_verdict(
        SimpleNamespace(sum_law=sum_law),
        # Of the round that is judged.
        SimpleNamespace(bounds_of={5: ((1, 2.0), (2, 4.0))}.__getitem__),
        members,
        SimpleNamespace(survivors=("anne", "carl"), mean=np.array([1.0, 2.0, 3.0])),
        replace(state(4), noise=(0.5, 0.7)),
        SimpleNamespace(length=3, segments=segments),
    )


def test_a_sum_is_judged_by_its_sites_its_round_and_the_bounds_of_each_tensor():
    asked: list = []
    law = Law(0.5, 0.1, 0.2)
    found = verdict(law, asked)
    assert asked == [([11, 33], 5, (0.5, 0.7), 3)]
    # The sum of two sites, in parts of 2 and of 4.
    assert law.asked == [([1.0, 1.0, 1.5], [1, 2])]
    assert (found.ratio, found.where, found.reason) == (0.5, "the sum", "")
    assert verdict(None) is None


@pytest.mark.parametrize(
    ("ratios", "where"),
    [
        ((3.0, 2.0, 1.0), "the sum"),
        ((2.0, 3.0, 1.0), "the tensor low"),
        ((2.0, 1.0, 3.0), "the tensor high"),
    ],
)
def test_the_worst_norm_is_named(ratios, where):
    assert verdict(Law(*ratios)).reason == (
        f"the norm of {where} is 3 times the most that sites of this software send together"
    )


@pytest.mark.parametrize(
    ("ratio", "shown"),
    [(1.0, None), (0.0, None), (1.0001, "1"), (1234.5, "1.23e+03"), (INF, "inf"), (NAN, "nan")],
)
def test_a_norm_at_its_limit_is_an_honest_cohorts_and_none_that_is_no_number(ratio, shown):
    reason = NormVerdict(ratio, "the sum").reason
    assert (f"is {shown} times" in reason) if shown else reason == ""


@pytest.mark.parametrize(
    ("reason", "words"),
    [("norm", "which site does not run this software"), ("test", "trains on something else")],
)
def test_what_to_do_depends_on_what_rounds_were_rejected_for(reason, words):
    assert MOST_REJECTED == 3
    with pytest.raises(TrainingError, match="3 rounds in a row were rejected") as caught:
        require_progress([BEFORE, *(line(number, reason) for number in (1, 2, 3))])
    assert words in caught.value.remedy


def said(losses, start=0):
    """What is said after each of the evaluations."""
    reports = [
        RoundReport(round=start + number, metrics=None if loss is ... else {"loss": loss})
        for number, loss in enumerate(losses)
    ]
    return [rising(reports[: number + 1]) for number in range(len(reports))]


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([2.0, 1.9, 1.8, 1.7], []),
        ([2.0, 1.9, 1.95, 1.9, 1.95], []),
        ([2.0, 2.1, 2.2], [1]),
        ([2.0, 1.8, 1.85, 1.9, 1.95, 2.5], [3]),
        ([2.0, 2.1, 1.9, 2.05], [1, 3]),
        ([2.0, ..., 2.1, ..., 2.2], [2]),
        ([2.0, None, 2.1], [2]),
        ([2.0], []),
        ([...], []),
    ],
)
def test_a_loss_that_rises_is_told_at_once_and_once(losses, told):
    assert [number for number, words in enumerate(said(losses)) if words] == told


def test_a_run_that_goes_on_without_its_first_figures_is_judged_by_the_last_three():
    assert [bool(words) for words in said([2.0, 2.1, 2.2], start=4)] == [False, False, True]
    assert "2, 2.1, 2.2" in said([2.0, 2.1, 2.2], start=4)[-1]


def test_what_is_said_of_a_rising_loss_names_both_and_the_remedy():
    words = said([2.0, 2.5])[-1]
    assert "2.5, above the 2 before training" in words
    assert "learning_rate" in words
