"""The second environment of an asynchronous version: seldon-core's microservice, beside the model's own.

seldon-core pins numpy below 2 and an old protobuf, and runs on Python 3.10 to 3.12: hardly any current model could
share an environment with it. So it gets an environment of its own, locked and shared as the models' are.
"""

from __future__ import annotations

from dataclasses import replace

from mlflow_domino.config import Secrets, Settings
from mlflow_domino.environment import Built, Environments
from mlflow_domino.errors import EnvironmentFailed
from mlflow_domino.interpreter import first_there
from mlflow_domino.resolver import Log

__all__ = ["CHECK", "LOCK", "PYTHONS", "build", "settings_of"]

#: Name of the file with its lock, beside the version's own.
LOCK = "seldon.lock"
#: What it runs on, the preferred one first.
PYTHONS = ("3.12", "3.11", "3.10")
#: A program for its Python that fails where it would not serve.
CHECK = "import pyuwsgi, seldon_core.wrapper, seldon_core.metrics"
# Its gunicorn imports pkg_resources, which setuptools 81 warns about and 82 has no more.
_REQUIREMENTS = ("seldon-core==1.18.2", "setuptools<81")


def build(environments: Environments, settings: Settings, secrets: Secrets, log: Log, *, python: str = "") -> Built:
    """Resolve and install the environment, or find it done.

    Parameters
    ----------
    settings : Settings
        Of the version: where packages and interpreters come from.
    python : str
        One of `PYTHONS`; empty: the first that is on this machine.

    Raises
    ------
    EnvironmentFailed
        No interpreter that will do, or no way to install it; with the tool's message.
    """
    minor = python or first_there(PYTHONS)
    try:
        return environments.build(None, settings_of(settings, minor or PYTHONS[0]), secrets, log)
    except EnvironmentFailed as error:
        if minor:
            raise EnvironmentFailed(
                f"The environment of seldon-core, which asynchronous endpoints need, cannot be made: {error.message}",
                log_tail=error.log_tail,
            ) from error
        allowed = settings.python_downloads and not settings.offline
        raise EnvironmentFailed(
            f"seldon-core, which asynchronous endpoints need, runs on Python {PYTHONS[-1]} to {PYTHONS[0]}. None of them "
            f"is on this machine, and {'none could' if allowed else 'none may'} be downloaded. Install one "
            f"(`uv python install {PYTHONS[0]}`, pyenv, or the system's packages); the model keeps its own.",
            log_tail=error.log_tail or error.message,
        ) from error


def settings_of(settings: Settings, python: str = "") -> Settings:
    """Return the settings of a version as they are for this environment; a lock names its own Python."""
    return replace(
        settings, environment=_REQUIREMENTS, python_version=python, is_async=False, install_harness_packages=True
    )
