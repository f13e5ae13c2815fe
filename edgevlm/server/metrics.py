"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from edgevlm.results import Stats

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "edgevlm_requests",
            "Requests that the model was asked, by how they ended",
            ["outcome"],
            registry=self._registry,
        )
        self._tokens = Counter(
            "edgevlm_tokens", "Positions, by kind", ["kind"], registry=self._registry
        )
        self._tiles = Counter(
            "edgevlm_tiles", "Tiles of pictures, by kind", ["kind"], registry=self._registry
        )
        self._phases = Counter(
            "edgevlm_phase_seconds",
            "Time of requests, by phase",
            ["phase"],
            registry=self._registry,
        )
        self._first_token = Histogram(
            "edgevlm_first_token_seconds",
            "From the beginning of the work to the first token",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._total = Histogram(
            "edgevlm_answer_seconds",
            "From the beginning of the work to the last token",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._waiting = Gauge(
            "edgevlm_waiting_requests", "Requests in the queue", registry=self._registry
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Read the queue's length whenever somebody asks."""
        self._waiting.set_function(waiting)

    def answered(self, stats: Stats) -> None:
        """A request got its whole answer."""
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

    def abandoned(self) -> None:
        """A client left before its answer was complete."""
        self._requests.labels("abandoned").inc()

    def failed(self, error: Exception) -> None:
        """A request could not be answered."""
        self._requests.labels(type(error).__name__).inc()

    def text(self) -> bytes:
        """Prometheus's exposition format."""
        return generate_latest(self._registry)
