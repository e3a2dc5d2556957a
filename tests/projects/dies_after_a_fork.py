import os
import signal

loaded_in = os.getpid()


def predict():
    if os.getpid() != loaded_in:
        os.kill(os.getpid(), signal.SIGSEGV)
    return loaded_in
