"""Tables of the queue, the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import sqlalchemy as sa

__all__ = ["BUCKETS_S", "COUNTED", "SCHEMA_VERSION", "counts", "deliveries", "keys", "meta", "metadata", "predictions"]

#: Version of the tables. A release that changes them adds a step to `database.MIGRATIONS`.
SCHEMA_VERSION = 1

metadata = sa.MetaData()

meta = sa.Table(
    "domino_meta",
    metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)

predictions = sa.Table(
    "domino_predictions",
    metadata,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("endpoint_id", sa.String(24), nullable=False),
    sa.Column("state", sa.SmallInteger, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("due_ms", sa.BigInteger, nullable=False),
    sa.Column("deadline_ms", sa.BigInteger, nullable=False),
    sa.Column("submitted_ms", sa.BigInteger, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("strikes", sa.Integer, nullable=False, default=0),
    sa.Column("losses", sa.Integer, nullable=False, default=0),
    sa.Column("fence", sa.Integer, nullable=False, default=0),
    sa.Column("owner", sa.String(32)),
    sa.Column("version", sa.Integer),
    sa.Column("cancel", sa.SmallInteger, nullable=False, default=0),
    sa.Column("webhook", sa.SmallInteger, nullable=False, default=0),
    sa.Column("request", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("errors", sa.Text),
    sa.Column("attempts", sa.Text),
    sa.Column("progress", sa.Text),
    # What is next of an endpoint, how much waits, and what ran last: each a short walk along this index.
    sa.Index("domino_predictions_lane", "endpoint_id", "state", "priority", "id"),
    sa.Index("domino_predictions_due", "state", "due_ms"),
)

#: Callers' Idempotency-Keys.
keys = sa.Table(
    "domino_keys",
    metadata,
    sa.Column("endpoint_id", sa.String(24), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("prediction_id", sa.String(36), nullable=False, index=True),
    sa.Column("digest", sa.String(64), nullable=False),
)

#: Webhooks; `due_ms` is empty until the prediction ended, and again when there is nothing left to do.
deliveries = sa.Table(
    "domino_deliveries",
    metadata,
    sa.Column("prediction_id", sa.String(36), primary_key=True),
    sa.Column("id", sa.String(36), nullable=False),
    sa.Column("endpoint_id", sa.String(24), nullable=False, index=True),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text, nullable=False),
    sa.Column("state", sa.String(12), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False, default=0),
    sa.Column("due_ms", sa.BigInteger, index=True),
    sa.Column("changed_ms", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text),
)

#: Upper limits of the histograms of waiting and running, in seconds; the last one has no end.
BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 300.0, 1800.0, float("inf"))
#: What is counted of an endpoint.
COUNTED = (
    "succeeded", "failed", "cancelled", "expired", "retried", "fenced", "webhook_failures", "waited_ms", "ran_ms",
    *(f"{name}_{bucket}" for name in ("waited", "ran") for bucket in range(len(BUCKETS_S))),
)  # fmt: skip

#: Counters for metrics, written with what they count; one row an endpoint, so that this costs one statement.
counts = sa.Table(
    "domino_counts",
    metadata,
    sa.Column("endpoint_id", sa.String(24), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTED),
)
