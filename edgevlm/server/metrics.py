"""Metrics for Prometheus, served at ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgevlm.results import Stats

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
"""Buckets of the histograms in seconds."""


class Metrics:
    """Metrics of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "edgevlm_requests",
            "Requests to the model, by outcome",
            ["outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "edgevlm_tokens", "Positions, by kind", ["kind"], registry=self._registry
        )
        self._tiles = Counter(
            "edgevlm_tiles", "Tiles of images, by kind", ["kind"], registry=self._registry
        )
        self._phases = Counter(
            "edgevlm_phase_seconds",
            "Time of requests, by phase",
            ["phase"],
            registry=self._registry,
        )
        self._first_token = Histogram(
            "edgevlm_first_token_seconds",
            "Time from the start of the work to the first token",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._total = Histogram(
            "edgevlm_answer_seconds",
            "Time from the start of the work to the last token",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "edgevlm_waiting_requests", "Requests in the queue", registry=self._registry
        )

    def track_queue(self, length: Callable[[], int]) -> None:
        """Call `length` for the length of the queue when the metrics are read."""
        self._waiting.set_function(length)

    def count_answered(self, stats: Stats) -> None:
        """Count a request that was answered completely."""
        self._requests.labels("answered").inc()
        for kind, tokens in (
            ("prompt", stats.prompt_tokens),
            ("prompt_cached", stats.cached_tokens),
            ("answer", stats.answer_tokens),
        ):
            self._tokens.labels(kind).inc(tokens)
        self._tiles.labels("encoded").inc(stats.encoded_tiles)
        self._tiles.labels("cached").inc(stats.cached_tiles)
        for phase in ("prepare", "encode", "prefill", "decode"):
            self._phases.labels(phase).inc(getattr(stats, f"{phase}_ms") / 1000)
        self._first_token.observe(stats.first_token_ms / 1000)
        self._total.observe(stats.total_ms / 1000)

    def count_abandoned(self) -> None:
        """Count a request whose client disconnected before the end of the answer."""
        self._requests.labels("abandoned").inc()

    def count_failed(self, error: Exception) -> None:
        """Count a request that failed."""
        self._requests.labels(type(error).__name__).inc()

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self._registry)
