"""What a server counts, in Prometheus's text form.

With several worker processes each keeps its counts in files of a shared directory, named by
``PROMETHEUS_MULTIPROC_DIR`` before this module is imported, and whichever is asked answers for all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from searchrl.serving.application import Exchange
from searchrl.serving.settings import METRICS_DIRECTORY

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_QUERIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        requests = Counter(
            "searchrl_requests", "Requests by route and status; 499: the client hung up.",
            ("route", "status"), registry=self._registry,
        )  # fmt: skip
        seconds = Histogram(
            "searchrl_request_seconds", "From a request's head to the end of its answer.",
            ("route",), buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        # The library looks a set of labels up under a lock, at every call.
        self._requests = cache(requests.labels)
        self._seconds = cache(seconds.labels)
        self._queries = Counter(
            "searchrl_queries", "Queries of admitted requests.", registry=self._registry
        )
        self._batches = Histogram(
            "searchrl_batch_queries", "Distinct queries handed to the retriever at a time.",
            buckets=_QUERIES, registry=self._registry,
        )  # fmt: skip
        self._load = Gauge(
            "searchrl_waiting_queries", "Queries waiting or under way.",
            registry=self._registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self._ready = Gauge(
            "searchrl_ready_workers", "Worker processes whose index is open.",
            registry=self._registry, multiprocess_mode="livesum",
        )  # fmt: skip

    @contextmanager
    def exchange(self, route: str) -> Iterator[Exchange]:
        """Count and time one request."""
        exchange, started = Exchange(), time.perf_counter()
        try:
            yield exchange
        finally:
            self._requests(route, str(exchange.status)).inc()
            self._seconds(route).observe(time.perf_counter() - started)

    def admitted(self, queries: int) -> None:
        """Count the queries of a request."""
        self._queries.inc(queries)

    def batch(self, queries: int) -> None:
        """Count a call of the retriever."""
        self._batches.observe(queries)

    def load(self, queries: int) -> None:
        """Note how many queries wait or are under way."""
        self._load.set(queries)

    def ready(self) -> None:
        """Note that this process can answer."""
        self._ready.set(1)

    def text(self) -> bytes:
        """All counts, of all worker processes."""
        directory = os.environ.get(METRICS_DIRECTORY)
        if directory is None:
            return generate_latest(self._registry)
        _forget_dead_processes(Path(directory))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _forget_dead_processes(directory: Path) -> None:
    """Delete what processes that have ended said of their present; their counts stay."""
    for file in directory.glob("gauge_live*.db"):
        try:
            os.kill(int(file.stem.rpartition("_")[2]), 0)
        except ProcessLookupError:
            file.unlink(missing_ok=True)
