def predict(x=1):
    raise RuntimeError("the first prediction fails")
