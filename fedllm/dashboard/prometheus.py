"""What run folders say, for Prometheus: released figures alone, none computed from records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fedllm.dashboard.following import Seen
from fedllm.dashboard.measures import bytes_in_all, promised_of, spent_of
from fedllm.visible import visible

TYPE = "text/plain; version=0.0.4; charset=utf-8"
_STATES = ("queued", "running", "stopped", "finished", "failed", "cancelled")


def page(runs: Mapping[str, Seen]) -> bytes:
    """Return the figures of federated runs, by their keys, in Prometheus' text format."""
    registry = CollectorRegistry()
    # A folder's name need not be text, and one such would leave nothing of the others.
    named = {visible(key): one for key, one in runs.items() if one.kind == "run"}
    registry.register(_Runs(named))
    return generate_latest(registry)


class _Runs(Collector):
    def __init__(self, runs: Mapping[str, Seen]) -> None:
        self._runs = runs

    def collect(self) -> Iterator[Metric]:
        """Yield each figure of all runs."""
        yield self._gauge("rounds_done", "Rounds that are done.", lambda one: one.done)
        yield self._gauge("rounds_planned", "Rounds in all.", lambda one: one.total or None)
        yield self._gauge(
            "sites_in_last_round",
            "Sites in the last round's sum.",
            lambda one: one.reports[-1].sites if one.done else None,
        )
        yield self._gauge("epsilon_promised", "Epsilon that the run promises.", promised_of)
        yield self._gauge(
            "epsilon_spent", "Epsilon spent so far, the most at a site, where it is told.", spent_of
        )
        yield self._states()
        yield self._measures()
        yield from self._sums()

    def _gauge(self, name: str, words: str, value: Any) -> Metric:
        found = GaugeMetricFamily(f"fedllm_run_{name}", words, labels=["run"])
        for key, one in self._runs.items():
            if (figure := value(one)) is not None:
                found.add_metric([key], inf if figure == inf else figure)
        return found

    def _states(self) -> Metric:
        found = GaugeMetricFamily(
            "fedllm_run_state", "1 for the state that a run is in.", labels=["run", "state"]
        )
        for key, one in self._runs.items():
            for state in _STATES:
                found.add_metric([key, state], float(one.state == state))
        return found

    def _measures(self) -> Metric:
        found = GaugeMetricFamily(
            "fedllm_run_measure",
            "Last evaluation, on the public test file or on what sites hold out.",
            labels=["run", "of", "measure"],
        )
        for key, one in self._runs.items():
            for of, name in (("test", "metrics"), ("sites", "site_metrics")):
                told = [figures for r in one.reports if (figures := getattr(r, name))]
                for measure, value in (told[-1] if told else {}).items():
                    if value is not None:
                        found.add_metric([key, of, measure], value)
        return found

    def _sums(self) -> Iterator[Metric]:
        sizes = CounterMetricFamily(
            "fedllm_run_bytes", "Bytes from and to the sites.", labels=["run", "direction"]
        )
        seconds = CounterMetricFamily(
            "fedllm_run_seconds", "Seconds by phase.", labels=["run", "phase"]
        )
        for key, one in self._runs.items():
            sizes.add_metric([key, "up"], bytes_in_all(r.bytes_up for r in one.reports))
            sizes.add_metric([key, "down"], bytes_in_all(r.bytes_down for r in one.reports))
            for phase in dict.fromkeys(name for r in one.reports for name in r.seconds):
                total = sum(r.seconds.get(phase) or 0.0 for r in one.reports)
                seconds.add_metric([key, phase], total)
        yield sizes
        yield seconds
