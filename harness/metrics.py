"""Prometheus metrics of a replica, summed over its worker processes and right across their restarts."""

from __future__ import annotations

import os
import time
from typing import Any, Callable, Iterator, Sequence

from .slots import Slots

__all__ = ["Metrics", "keep_files_by"]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_WAITS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
#: Whether the files have their names already: what a model counts goes into them too.
_named = False
_PATHS = {"/model": "model", "/invocations": "invocations"}


def keep_files_by(worker_id: Callable[[], int]) -> None:
    """Have prometheus-client keep one file for each worker's number.

    The process that replaces a recycled one goes on with it; files by process id would pile up. To be called before the
    first metric is made, the model's own ones included.
    """
    global _named
    if not _named and os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import values

        values.ValueClass = values.MultiProcessValue(process_identifier=worker_id)
        _named = True


class Metrics:
    """Counts requests; what the processes share already (in flight, load time, restarts) is read when asked for.

    Parameters
    ----------
    slots : Slots or None
    worker : int or None
        This worker's number under uWSGI.
    """

    def __init__(self, slots: Slots | None = None, worker: int | None = None) -> None:
        import prometheus_client

        self._client = prometheus_client
        self._shared = worker is not None and bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))
        if worker is not None:
            keep_files_by(lambda: worker)
        self._slots = slots
        self._children: dict[tuple[str, str], tuple[Any, Any, Any]] = {}
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "domino_requests", "Requests answered.", ["path", "code"], registry=self._registry
        )
        self._rejected = prometheus_client.Counter(
            "domino_requests_rejected",
            "Requests refused before the model saw them, by status.",
            ["code"],
            registry=self._registry,
        )
        self._latency = prometheus_client.Histogram(
            "domino_request_duration_seconds",
            "From the first byte of the request in Python to the last byte of the answer.",
            ["path"],
            registry=self._registry,
            buckets=_BUCKETS,
        )
        self._rows = prometheus_client.Histogram(
            "domino_batch_rows", "Rows of a joined prediction.", registry=self._registry, buckets=_ROWS
        )
        self._waits = prometheus_client.Histogram(
            "domino_batch_wait_seconds",
            "How long a request waited to be joined.",
            registry=self._registry,
            buckets=_WAITS,
        )
        self._splits = prometheus_client.Counter(
            "domino_batch_splits", "Joined predictions that failed and were split.", registry=self._registry
        )

    def joined(self, rows: int, waited_s: Sequence[float]) -> None:
        """Count a prediction of several requests' rows, and how long they waited for it."""
        self._rows.observe(rows)
        for seconds in waited_s:
            self._waits.observe(seconds)

    def split(self) -> None:
        """Count a joined prediction that failed, and is asked for again in halves."""
        self._splits.inc()

    @property
    def content_type(self) -> str:
        return self._client.CONTENT_TYPE_LATEST

    def observe(self, path: str, code: str, started: float) -> None:
        """Count a request that is over; `started` is of ``time.monotonic()``."""
        name = _PATHS.get(path, "other")
        count, latency, rejected = self._children.get((name, code)) or self._make_children(name, code)
        count.inc()
        if latency is not None:
            latency.observe(time.monotonic() - started)
        if rejected is not None:
            rejected.inc()

    def _make_children(self, name: str, code: str) -> tuple[Any, Any, Any]:
        """Look up, once, what a path and a status count in: the client's own look-up costs more than the counting."""
        known = name != "other"
        found = (
            self._requests.labels(name, code),
            self._latency.labels(name) if known else None,
            self._rejected.labels(code) if known and code[0] == "4" else None,
        )
        self._children[name, code] = found
        return found

    def exposition(self) -> bytes:
        """Return all metrics in the text format."""
        if self._shared:
            from prometheus_client import multiprocess

            registry = self._client.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        else:
            registry = self._registry
        text = self._client.generate_latest(registry)
        if self._slots is not None:
            own = self._client.CollectorRegistry()
            own.register(_SlotsCollector(self._slots))
            text += self._client.generate_latest(own)
        return text


class _SlotsCollector:
    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        workers = [(str(n), self._slots.worker(n)) for n in range(1, self._slots.workers + 1)]
        yield GaugeMetricFamily("domino_requests_in_flight", "Requests being answered.", self._slots.count_in_flight())
        load = GaugeMetricFamily("domino_model_load_seconds", "Loading and warming the model.", labels=["worker"])
        restarts = CounterMetricFamily("domino_worker_restarts", "Workers that were replaced.", labels=["worker"])
        for name, record in workers:
            load.add_metric([name], record.load_time_s)
            restarts.add_metric([name], max(0, record.starts - 1))
        yield load
        yield restarts
