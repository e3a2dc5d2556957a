def predict(:
    pass
