"""Loads once; the processes that replace the first one do not."""

import os

marker = os.path.join(os.environ["DOMINO_REPLICA_DIR"], "loaded")
if os.path.exists(marker):
    raise RuntimeError("loads only once")
open(marker, "w").close()


def predict():
    os.kill(os.getpid(), 9)
