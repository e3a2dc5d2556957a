import os

loaded_in = os.getpid()


def predict():
    if os.getpid() != loaded_in:
        raise RuntimeError("cannot be used in a forked process")
    return loaded_in
