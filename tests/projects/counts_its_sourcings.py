import os

with open(os.path.join(os.environ["DOMINO_REPLICA_DIR"], "sourcings"), "a") as file:
    file.write("x\n")


def predict():
    return os.getpid()
