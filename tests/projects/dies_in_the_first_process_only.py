import os

try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    pass
else:
    os.abort()


def predict():
    return os.getpid()
