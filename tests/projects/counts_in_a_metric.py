import os
import time

from prometheus_client import Counter

calls = Counter("my_calls", "Calls of the model.")
calls.inc(100)


def predict(seconds=0.0):
    time.sleep(seconds)
    calls.inc()
    return os.getpid()
