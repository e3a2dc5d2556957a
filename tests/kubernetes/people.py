"""Other people's homes, which declare the same namespaces, or others."""

from __future__ import annotations

from pathlib import Path

from mlflow_domino.cluster import Cluster
from mlflow_domino.home import Home

#: Where images of tests are pushed to, and pulled from by both clusters.
REGISTRY = "localhost:5000"

__all__ = ["REGISTRY", "People", "at"]


def at(cluster: Cluster) -> dict[str, object]:
    """Return the declaration's keys that mean a namespace."""
    return {"context": cluster.context, "namespace": cluster.namespace}


class People:
    """Makes homes below a folder.

    Parameters
    ----------
    folder : Path
    environments : Path
        What all of them share, so that nothing is resolved again.
    """

    def __init__(self, folder: Path, environments: Path) -> None:
        self._folder = folder
        self._environments = environments
        self._count = 0

    def home(self, **planes: dict[str, object]) -> Home:
        """Return a new home with data planes; each has the tests' registry, unless it names another."""
        self._count += 1
        home = Home(self._folder / f"home-{self._count}")
        home.ensure()
        text = ""
        for name, declared in planes.items():
            values = {"kind": "kubernetes", "registry": REGISTRY, **declared}
            text += f"[data_planes.{name}]\n" + "".join(f"{key} = {_toml(v)}\n" for key, v in values.items())
        home.config.write_text(text)
        home.environments.symlink_to(self._environments)
        return home


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f'"{value}"'
