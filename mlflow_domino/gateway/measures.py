"""What is measured of asynchronous endpoints: counters that the dispatchers write, and what waits now."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from mlflow_domino.gateway.metrics import Exposition
from mlflow_domino.queue.queue import Depth, Queue
from mlflow_domino.queue.schema import BUCKETS_S

__all__ = ["add_measures"]

_OUTCOMES = ("succeeded", "failed", "cancelled", "expired")
_COUNTERS = {
    "retried": ("domino_async_retries_total", "Runs that came to no answer and are tried again."),
    "fenced": ("domino_async_fenced_total", "Answers that came too late, and were not stored."),
    "webhook_failures": ("domino_async_webhook_failures_total", "Calls of webhooks that failed."),
}
_HISTOGRAMS = {
    "waited": ("domino_async_time_in_queue_seconds", "Time from a submission to the run that answered it."),
    "ran": ("domino_async_run_seconds", "Time that a run took at a replica."),
}


def add_measures(exposition: Exposition, queue: Queue, endpoints: Iterable[str], at_ms: int) -> None:
    """Add what is known of these endpoints."""
    counts = queue.counts()
    for endpoint_id in endpoints:
        labels = {"endpoint": endpoint_id}
        own = counts.get(endpoint_id, {})
        _add_depth(exposition, queue.depth(endpoint_id), labels, at_ms)
        for outcome in _OUTCOMES:
            words = "Predictions that ended, by how."
            exposition.counter(
                "domino_async_predictions_total", words, own.get(outcome, 0), {**labels, "outcome": outcome}
            )
        for counted, (name, words) in _COUNTERS.items():
            exposition.counter(name, words, own.get(counted, 0), labels)
        for counted, (name, words) in _HISTOGRAMS.items():
            found = [own.get(f"{counted}_{n}", 0) for n in range(len(BUCKETS_S))]
            buckets = dict(zip(BUCKETS_S, itertools.accumulate(found), strict=True))
            exposition.histogram(name, words, buckets, own.get(f"{counted}_ms", 0) / 1000, labels)


def _add_depth(exposition: Exposition, depth: Depth, labels: Mapping[str, str], at_ms: int) -> None:
    age_s = 0.0 if depth.oldest_ms is None else max(0, at_ms - depth.oldest_ms) / 1000
    exposition.gauge("domino_async_queue_depth", "Predictions that wait.", depth.waiting, labels)
    exposition.gauge("domino_async_oldest_age_seconds", "Age of the oldest prediction that waits.", age_s, labels)
    exposition.gauge("domino_async_running", "Predictions that run.", depth.running, labels)
