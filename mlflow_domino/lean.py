"""Shows that a model loads and answers its own example in an environment, before anybody relies on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from mlflow_domino.requirements import ModelFacts
from mlflow_domino.resolver import Log, run

__all__ = ["fitness_key", "misfit"]

# Runs in the model's environment: Python 3.8 and MLflow of any age. What an old MLflow cannot read as an example
# counts as no example: loading is shown then, no more.
_TRIAL = """
import sys
import mlflow.pyfunc
path, answered = sys.argv[1:]
model = mlflow.pyfunc.load_model(path)
example = None
if model.metadata.saved_input_example_info:
    try:
        example = model.metadata.load_input_example(path)
    except AttributeError:
        from mlflow.models.utils import _read_example
        example = _read_example(model.metadata, path)
params = None
if example is not None and hasattr(model.metadata, "load_input_example_params"):
    params = model.metadata.load_input_example_params(path)
if params:
    model.predict(example, params=params)
elif example is not None:
    model.predict(example)
open(answered, "w").close()
"""
_CUSTOM = "mlflow.pyfunc.model"
_PASSED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def fitness_key(model: Path, facts: ModelFacts) -> str:
    """Return what a verdict holds for: the flavor, and for a model with code of its own, that code."""
    digest = hashlib.sha256("\0".join((facts.loader_module, *facts.flavors, facts.mlflow_version)).encode())
    own = [path for path in (model / "code").rglob("*.py") if path.is_file()]
    if facts.loader_module == _CUSTOM:
        own += [path for path in (*model.glob("*.pkl"), *model.glob("*.py")) if path.is_file()]
    for path in sorted(own):
        digest.update(os.fsencode(path.relative_to(model)) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]


def misfit(
    python: Path, model: Path, *, variables: Mapping[str, str], folder: Path, deadline_s: float, log: Log
) -> str:
    """Load the model and let it answer its example, in a process of its own.

    Parameters
    ----------
    python : Path
        Of the environment.
    model : Path
        Folder of the model.
    variables : mapping of str to str
        The endpoint's own; everything else of ours is kept away.
    folder : Path
        Where it runs; anything may be written there.
    deadline_s : float
        After which it counts as not working.
    log : callable
        Takes each line that the model prints, with the variables' values hidden.

    Returns
    -------
    str
        Why the model does not work there, empty when it does.
    """
    hidden = sorted((value for value in variables.values() if len(value) >= 6), key=len, reverse=True)

    def redacted(line: str) -> str:
        for value in hidden:
            line = line.replace(value, "****")
        return line

    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    answered = folder / "answered"
    answered.unlink(missing_ok=True)
    finished = run(
        [python, "-I", "-u", "-c", _TRIAL, model.resolve(), answered],
        environment={**environment, **variables},
        cwd=folder,
        log=lambda line: log(redacted(line)),
        deadline_s=deadline_s,
    )
    if answered.exists():  # the code alone proves nothing: a model may end the process with 0 while it loads
        return ""
    if finished.code is None:
        return f"no answer within {deadline_s:g} s"
    lines = [line for line in finished.tail.splitlines() if line.strip()]
    if finished.code and lines:
        return redacted(lines[-1].strip())[:300]
    return f"the process ended with code {finished.code} while the model was loaded or tried"
