import logging
import multiprocessing
import os
import threading
import time

progress = logging.getLogger("domino.progress")


def predict(until):
    """Say how far it is, from here, from a thread and from a process, until there is a file."""
    progress.info("from %s", "here", extra={"fraction": 0.25})
    _wait(until + ".1")
    _end(threading.Thread(target=progress.info, args=("from a thread",)))
    _wait(until + ".2")
    fork = multiprocessing.get_context("fork")
    _end(fork.Process(target=progress.info, args=("from a process",), kwargs={"extra": {"fraction": 0.75}}))
    _wait(until + ".3")
    return "done"


def _end(started):
    started.start()
    started.join()


def _wait(path):
    while not os.path.exists(path):
        time.sleep(0.01)
