"""Prometheus metrics of one server: what is asked of it, how long it takes, how much is indexed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The instruments, in a registry of their own so that several servers may live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "windlass_http_requests",
            "Requests by route template, method and status",
            ("route", "method", "status"),
            registry=self.registry,
        )
        self.latency = Histogram(
            "windlass_http_request_seconds",
            "Time from request to the end of the answer",
            ("route",),
            buckets=_REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.first_token = self._by_tenant("ttft", "Time from a request to its first token, waiting included")
        self.between_tokens = self._by_tenant("tbt", "Time between two tokens of one answer")
        self.end_to_end = self._by_tenant("e2e", "Time from a request to its last token, waiting included")
        self.rejected = Counter(
            "windlass_rejected", "Requests refused before any work", ("code",), registry=self.registry
        )

    def _by_tenant(self, name: str, meaning: str) -> Histogram:
        return Histogram(
            f"windlass_{name}_seconds", meaning, ("tenant",), buckets=_TOKEN_BUCKETS, registry=self.registry
        )

    def watch(self, read: Callable[[], dict[str, float | dict[str, float]]]) -> None:
        """Add gauges that are read when somebody looks.

        Args:
            read: Gives a number for each name, or numbers by state (`{"files": {"indexed": 3}}`).
        """
        self.registry.register(_Watched(read))

    def text(self) -> bytes:
        """Everything in the Prometheus text format."""
        return generate_latest(self.registry)


class _Watched:
    def __init__(self, read: Callable[[], dict[str, float | dict[str, float]]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()  # without this, registering would read the values already

    def collect(self) -> Iterable[Any]:
        for name, value in self._read().items():
            help_text = name.replace("_", " ")
            if isinstance(value, dict):
                family = GaugeMetricFamily(f"windlass_{name}", help_text, labels=("state",))
                for state, number in value.items():
                    family.add_metric([state], number)
            else:
                family = GaugeMetricFamily(f"windlass_{name}", help_text, value=value)
            yield family
