from __future__ import annotations

from tests.contract import DataPlaneContract


class TestKubernetesDataPlane(DataPlaneContract):
    pass
