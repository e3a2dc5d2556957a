import os
import random

with open("loads", "a") as file:
    file.write("x\n")
random.seed(1)
try:
    import numpy
except ImportError:
    numpy = None
else:
    numpy.random.seed(1)


def predict():
    drawn = [random.random()]
    if numpy is not None:
        drawn.append(numpy.random.rand())
    return os.getpid(), drawn
