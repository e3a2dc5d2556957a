import os
import time

with open("loads", "a") as file:
    file.write("x\n")
loaded_in = os.getpid()


def predict():
    while os.getpid() != loaded_in:
        time.sleep(0.01)
    return loaded_in
