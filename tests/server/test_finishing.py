"""The figures of a whole run, put together from its rounds."""

from __future__ import annotations

import pytest

from fedllm.config import RunConfig, parse
from fedllm.runs.metrics import RoundReport
from fedllm_server.finishing import make_summary


@pytest.fixture
def summary_of(tiny_model):
    model = tiny_model()
    values = {"name": "bank", "task": "classification", "model": {"path": "m"}}
    config = parse(
        RunConfig, {**values, "data": {"train": "t", "labels": ["one", "two", "three"]}}, "test"
    )

    def make(reports):
        return make_summary(config, model, "run-1", ("anne", "bob"), reports, 9.5)

    return make


def test_the_first_and_the_last_figures_stand_beside_the_sums(summary_of):
    reports = [
        RoundReport(round=0, metrics={"accuracy": 0.1}),
        RoundReport(round=1, bytes_up=5, bytes_down=7, seconds={"train": 2.0}),
        RoundReport(round=2, bytes_up=6, bytes_down=8, metrics={"accuracy": 0.6}),
    ]
    summary = summary_of(reports)
    assert (summary.rounds, summary.sites, summary.site_names) == (2, 2, ["anne", "bob"])
    assert summary.metrics_before == {"accuracy": 0.1}
    assert summary.metrics == {"accuracy": 0.6}
    assert (summary.bytes_up, summary.bytes_down) == (11, 15)
    assert (summary.seconds["total"], summary.seconds["train"]) == (9.5, 2.0)
    assert summary.seconds["encrypt"] == 0.0


def test_a_run_that_was_not_measured_before_says_so(summary_of):
    summary = summary_of([RoundReport(round=1, metrics={"accuracy": 0.6})])
    assert summary.metrics_before == {}
    assert summary.metrics == {"accuracy": 0.6}
    assert summary_of([]).metrics == {}
