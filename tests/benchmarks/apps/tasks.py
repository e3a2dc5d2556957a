"""The job of `tests.benchmarks.predictions` as a Celery task, kept as safely as ours: late acknowledgement, stored results."""

import os
import time

from celery import Celery

app = Celery("tasks", broker=os.environ["BENCHMARK_REDIS"], backend=os.environ["BENCHMARK_REDIS"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=4,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    result_expires=172800,
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="predict")
def predict(x):
    end = time.perf_counter() + float(os.environ["BENCHMARK_MODEL_S"])
    while time.perf_counter() < end:
        pass
    return {"x": x}
