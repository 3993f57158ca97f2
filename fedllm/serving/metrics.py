"""What a service counts, for Prometheus; no text and nothing that is made of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from fedllm.serving.keys import Tenant

# Whose requests have no key that opens anything.
NOBODY = "nobody"
# What is of the service itself. Other sums over all would tell each tenant of the others.
_OF_ALL = ("fedllm_errors", "fedllm_writing", "fedllm_waiting")
TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        told = self.registry
        self.requests = Counter(
            "fedllm_requests", "Requests.", ["tenant", "endpoint", "status"], registry=told
        )
        self.seconds = Histogram(
            "fedllm_request_seconds",
            "Seconds until a request was answered.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=told,
        )
        self.first = Histogram(
            "fedllm_first_piece_seconds",
            "Seconds until the first piece of a text.",
            buckets=_SECONDS,
            registry=told,
        )
        self.tokens = Counter(
            "fedllm_tokens", "Tokens read and written.", ["tenant", "model", "kind"], registry=told
        )
        self.cache_texts = Counter(
            "fedllm_prompt_cache_texts",
            "Texts whose prompt began as one that was kept, or not.",
            ["result"],
            registry=told,
        )
        self.cache_tokens = Counter(
            "fedllm_prompt_cache_tokens",
            "Tokens of prompts that were kept and not read again.",
            registry=told,
        )
        self.masked = Counter(
            "fedllm_masked", "Matches that the guard masked.", ["pattern"], registry=told
        )
        self.errors = Counter(
            "fedllm_errors", "Errors in the service itself.", ["kind"], registry=told
        )

    def watch(
        self, load: Callable[[], tuple[int, int]], cache_bytes: Callable[[], int] = lambda: 0
    ) -> None:
        """Tell at each look how many texts are written, how many wait, and what is kept."""
        kept = Gauge("fedllm_prompt_cache_bytes", "Memory of kept prompts.", registry=self.registry)
        kept.set_function(cache_bytes)
        for place, name in enumerate(("writing", "waiting")):
            gauge = Gauge(f"fedllm_{name}", f"Texts {name} now.", registry=self.registry)
            gauge.set_function(lambda place=place: load()[place])  # type: ignore[misc]

    def reuse(self, tokens: int) -> None:
        """Count how much of a prompt was kept from before."""
        self.cache_texts.labels("hit" if tokens else "miss").inc()
        self.cache_tokens.inc(tokens)

    def failed(self, kind: str) -> None:
        """Count an error of the service itself."""
        self.errors.labels(kind).inc()

    def mask(self, found: Mapping[str, int]) -> None:
        """Count what the guard masked in a text."""
        for name, count in found.items():
            self.masked.labels(name).inc(count)

    def page(self, tenant: Tenant) -> bytes:
        """Return what a tenant may see, in Prometheus' text format: its own, or all of it."""
        if tenant.oversees:
            return generate_latest(self.registry)
        shown = CollectorRegistry()
        shown.register(_Own(self.registry, tenant.name))
        return generate_latest(shown)


class _Own(Collector):
    """Counters without the lines of other tenants."""

    def __init__(self, registry: CollectorRegistry, tenant: str) -> None:
        self._registry = registry
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        """Yield what is of the tenant, of nobody, or of the service itself."""
        for found in self._registry.collect():
            shown = Metric(found.name, found.documentation, found.type, found.unit)
            shown.samples = [
                sample
                for sample in found.samples
                if found.name in _OF_ALL or sample.labels.get("tenant") in (self._tenant, NOBODY)
            ]
            if shown.samples:
                yield shown
