import os
import time


def predict(seconds=0.0):
    time.sleep(seconds)
    return os.getpid()
