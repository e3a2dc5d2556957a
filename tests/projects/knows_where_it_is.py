import os
import sys

sourced_as = __name__


def predict():
    return {
        "file": __file__,
        "first": sys.path[0],
        "cwd": os.getcwd(),
        "name": sourced_as,
        "executable": sys.executable,
    }
