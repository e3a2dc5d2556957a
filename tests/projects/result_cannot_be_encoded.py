def predict(what="object"):
    return {"outer": [1, {"object": object(), "complex": 1j, "type": int}[what]]}
