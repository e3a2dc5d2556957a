kept = []


def predict(mib=0):
    import os

    kept.append(b"x" * (mib << 20))
    return os.getpid()
