from __future__ import annotations

from collections.abc import Callable

import psutil
import pytest

from mlflow_domino.data_planes.supervisor import Supervisor
from mlflow_domino.home import Home
from tests.conftest import processes_of
from tests.contract import DataPlaneContract, Things, files_of


@pytest.fixture
def things(home: Home) -> Callable[[], Things]:
    return lambda: {
        "vassals": set(Supervisor(home).names()),
        "processes": {str(p.pid) for p in processes_of(home) if serves(p)},
        "files": files_of(home),
    }


def serves(process: psutil.Process) -> bool:
    """Whether a process is a replica's; the gateway's are there as long as the data plane is."""
    try:
        return "DOMINO_REPLICA_DIR" in process.environ()
    except psutil.Error:
        return False


class TestLocalDataPlane(DataPlaneContract):
    pass
