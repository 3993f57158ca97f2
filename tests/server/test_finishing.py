"""The figures of a whole run, put together from its rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedllm.config import RunConfig, parse
from fedllm.identity.roster import Roster
from fedllm.privacy.ledger.entries import Head
from fedllm.privacy.ledger.heads import keep_heads
from fedllm.runs import names
from fedllm.runs.metrics import RoundReport, append_report
from fedllm.runs.summary import read_summary
from fedllm_server import finishing
from fedllm_server.finishing import known_sites, make_summary


@pytest.fixture
def summary_of(tiny_model):
    model = tiny_model()
    values = {"name": "bank", "task": "classification", "model": {"path": "m"}}
    config = parse(
        RunConfig, {**values, "data": {"train": "t", "labels": ["one", "two", "three"]}}, "test"
    )

    def make(reports, epsilon=None):
        asked = parse(RunConfig, config.model_dump() | {"privacy": {"epsilon": epsilon}}, "test")
        return make_summary(asked, model, "run-1", ("anne", "bob"), reports, 9.5)

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


def test_bytes_are_those_of_the_sites_of_one_round(tiny_model):
    def expansion(names, encryption=None, **rounds):
        values = {"name": "bank", "task": "classification", "model": {"path": "m"}}
        data = {"train": "t", "labels": ["one", "two", "three"]}
        config = parse(
            RunConfig, {**values, "data": data, "rounds": rounds} | (encryption or {}), "test"
        )
        found = make_summary(config, tiny_model(), "run-1", names, [], 9.5)
        return found.encryption["bytes_up_per_parameter"]

    many = tuple(f"site-{i}" for i in range(20_000))
    assert expansion(many, sites=2) == expansion(many[:2]) < expansion(many[:5000])
    plain = {"encryption": {"scheme": "none", "bits": 8}}
    assert expansion(many[:1], plain) < expansion(many[:2], plain)


def test_a_run_that_was_not_measured_before_says_so(summary_of):
    summary = summary_of([RoundReport(round=1, metrics={"accuracy": 0.6})])
    assert summary.metrics_before == {}
    assert summary.metrics == {"accuracy": 0.6}
    assert summary_of([]).metrics == {}


def test_the_sites_of_a_run_are_those_that_answered_and_those_that_dropped_out(tmp_path):
    append_report(tmp_path / names.METRICS, RoundReport(round=1, dropped={"carl": "slow"}))
    assert known_sites(tmp_path) == {"carl"}
    keep_heads(tmp_path / names.HEADS, "run-1", 1, {"anne": Head(1, "ab" * 32)})
    assert known_sites(tmp_path) == {"anne", "carl"}


def test_the_last_figures_of_the_sites_and_the_start_of_the_first_round_are_told(summary_of):
    reports = [
        RoundReport(round=0, started="2026-01-01"),
        RoundReport(round=1, site_metrics={"accuracy": 0.2}),
        RoundReport(round=2, site_metrics={"accuracy": 0.4}),
    ]
    summary = summary_of(reports)
    assert (summary.site_metrics, summary.started) == ({"accuracy": 0.4}, "2026-01-01")
    assert summary.privacy["epsilon"] is None
    assert (summary.simulated, summary_of([]).started, summary_of([]).rounds) == (False, "", 0)


def test_quality_by_part_at_the_sites_is_that_of_the_first_and_the_last_evaluation(tiny_model):
    values = {"name": "bank", "task": "classification", "model": {"path": "m"}}
    data = {"train": "t", "labels": ["one", "two", "three"]}
    evaluation = {"every": 1, "parts": "label"}
    config = parse(RunConfig, {**values, "data": data, "evaluation": evaluation}, "test")
    parts = [{"one": {"accuracy": 0.2 + number / 10}, "two": {}} for number in range(3)]
    reports = [RoundReport(round=1 + n, site_parts=found) for n, found in enumerate(parts)]

    def told(reports):
        return make_summary(config, tiny_model(), "run-1", ("anne",), reports, 9.5).site_quality

    assert told(reports) == {
        "label": {
            "one": {"first": {"accuracy": 0.2}, "last": {"accuracy": 0.4}},
            "two": {"first": {}, "last": {}},
        }
    }
    assert told(reports[:1]) == {"label": {"one": {"last": {"accuracy": 0.2}}, "two": {"last": {}}}}
    assert told([RoundReport(round=1)]) == {}


def test_what_a_private_run_spent_without_a_bound_is_never_what_it_promised(summary_of):
    """A figure that was not finite is written as null, and says more than every number."""
    unbounded = {"anne": float("inf"), "bob": 3.0}
    for rounds in (
        [RoundReport(round=1, epsilon=unbounded)],
        [
            RoundReport(round=1, epsilon={"anne": 1.0, "bob": 1.0}),
            RoundReport(round=2, epsilon=unbounded),
        ],
        [RoundReport(round=1, epsilon=unbounded), RoundReport(round=2, epsilon={"bob": 3.0})],
        [RoundReport(round=1, epsilon={"anne": None, "bob": None})],
    ):
        summary = summary_of(rounds, epsilon=4.0)
        assert summary.privacy["epsilon"] is None
        assert summary.privacy["promised"] == 4.0
        assert summary.privacy["sites"]["anne"] is None
        assert "epsilon unlimited, delta 1e-05, for each record" in summary.describe(Path("run"))
    known = summary_of([RoundReport(round=1, epsilon={"anne": 2.0, "bob": 3.0})], epsilon=4.0)
    assert known.privacy["epsilon"] == 3.0
    assert "epsilon 3 at most" in known.describe(Path("run"))
    # Only the sites of a deployment know.
    assert summary_of([RoundReport(round=1)], epsilon=4.0).privacy["epsilon"] == 4.0
    assert "NONE: this run was not private" in summary_of([RoundReport(round=1)]).describe(
        Path("run")
    )


def test_titles_are_those_of_the_runs_own_sites(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(finishing, "write_report", lambda out: None)
    monkeypatch.setattr(finishing, "write_released_card", lambda out, model: None)
    model = tiny_model()
    values = {"name": "bank", "task": "classification", "model": {"path": "m"}}
    config = parse(
        RunConfig, {**values, "data": {"train": "t", "labels": ["one", "two", "three"]}}, "test"
    )
    titles = {"anne": "Sankt Änne", "carl": "Another one's"}
    roster = Roster(b"", dict.fromkeys(("anne", "bob", "carl"), b""), titles=titles)
    append_report(tmp_path / names.METRICS, RoundReport(round=1))
    sites = ("anne", "bob")
    summary = finishing.finish(tmp_path, config, model, "run-1", sites, 0.0, roster)
    assert summary.site_titles == {"anne": "Sankt Änne"}
    assert read_summary(tmp_path).site_titles == {"anne": "Sankt Änne"}


def test_a_run_that_ended_with_a_rollback_has_the_figures_of_the_model_it_went_back_to(summary_of):
    reports = [
        RoundReport(round=0, metrics={"loss": 3.0}),
        RoundReport(round=1, metrics={"loss": 2.0}),
        RoundReport(round=2, metrics={"loss": 9.0}, rejected={"test": "w"}, kept_round=1),
        RoundReport(round=3),
    ]
    assert summary_of(reports).metrics == {"loss": 2.0}
    # Its line may be lost; what is known is told.
    assert summary_of([reports[2]]).metrics == {"loss": 9.0}
