"""Metrics of ``edgevlm watch`` for Prometheus."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from edgevlm.errors import InputError, MissingDependencyError

try:
    from prometheus_client import CollectorRegistry, Histogram, start_http_server
    from prometheus_client.core import CounterMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise MissingDependencyError(
        "--metrics needs prometheus-client: pip install prometheus-client"
    ) from error

if TYPE_CHECKING:
    from edgevlm.watch import Seen, Watch

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10)
"""Buckets of the histograms in seconds."""


class WatchMetrics(Collector):
    """Counts of a `Watch`, and histograms of its values.

    Args:
        watch: its `Watch.stats` are read when the metrics are asked for.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._age = Histogram(
            "edgevlm_watch_age_seconds",
            "Age of the frame when its value came",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._answer = Histogram(
            "edgevlm_watch_answer_seconds",
            "Time of the model for a value",
            buckets=BUCKETS,
            registry=self._registry,
        )

    def collect(self) -> Iterable[Metric]:
        """Return the counts as Prometheus reads them."""
        for name, count in dataclasses.asdict(self._watch.stats).items():
            yield CounterMetricFamily(
                f"edgevlm_watch_{name}", f"Count of WatchStats.{name}", value=count
            )

    def observe(self, seen: Seen) -> None:
        """Count a value."""
        self._age.observe(seen.age)
        self._answer.observe(seen.seconds)

    def serve(self, port: int) -> None:
        """Serve the metrics on 127.0.0.1.

        Raises:
            InputError: the port cannot be used.
        """
        try:
            start_http_server(port, addr="127.0.0.1", registry=self._registry)
        except (OSError, OverflowError) as error:
            raise InputError(f"--metrics {port} cannot be served: {error}") from error
