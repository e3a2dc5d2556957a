"""Adds two numbers."""


def predict(a, b=2):
    return {"sum": a + b}
