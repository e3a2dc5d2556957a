"""What MLflow loads as the deployments target `domino`.

MLflow wants `run_local`, `target_help` and exactly one subclass of `BaseDeploymentClient` in this module's namespace.
It is not the package itself, because importing MLflow takes seconds that `mlflow-domino status` need not wait for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlflow_domino.client import DominoDeploymentClient
from mlflow_domino.foreground import run_in_foreground
from mlflow_domino.help import target_text

__all__ = ["DominoDeploymentClient", "run_local", "target_help"]


def run_local(name: str, model_uri: str, flavor: str | None = None, config: Mapping[str, Any] | None = None) -> None:
    """Serve a model in the foreground until Ctrl-C, in a home of its own that is removed afterwards."""
    run_in_foreground(name, model_uri, flavor, config)


def target_help() -> str:
    """Return what `mlflow deployments help -t domino` prints."""
    return target_text()
