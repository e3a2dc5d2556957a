import os
import sys

print("loading with", os.environ["API_KEY"])
sys.stderr.write("in two ")
sys.stderr.write("pieces: " + os.environ["API_KEY"][:5])
sys.stderr.write(os.environ["API_KEY"][5:] + "\n")


def predict():
    print(repr(os.environ["API_KEY"]))
    raise ValueError(os.environ["API_KEY"])
