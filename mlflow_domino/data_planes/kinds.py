"""The kinds of data planes, each imported when it is used."""

from __future__ import annotations

from mlflow_domino.data_planes.base import DataPlane
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.home import Home
from mlflow_domino.store import Records, SqliteRecords

__all__ = ["plane_of", "records_of"]


def plane_of(home: Home, declaration: Declaration) -> DataPlane:
    """Return the data plane that is declared."""
    if declaration.kind == "docker":
        from mlflow_domino.data_planes.docker import DockerDataPlane

        return DockerDataPlane(home, declaration)
    if declaration.kind == "kubernetes":
        from mlflow_domino.data_planes.kubernetes import KubernetesDataPlane

        return KubernetesDataPlane(home, declaration)
    from mlflow_domino.data_planes.local import LocalDataPlane

    return LocalDataPlane(home, declaration)


def records_of(home: Home, plane: DataPlane) -> Records:
    """Return where the records of a data plane are: with it, or else in the home."""
    return plane.own_records() or SqliteRecords(home)
