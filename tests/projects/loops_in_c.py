import os


def predict(loop=False):
    if loop:
        sum(range(10**13))  # one bytecode: holds the interpreter's lock, and sees no signal
    return os.getpid()
