from __future__ import annotations

from tests.contract import DataPlaneContract


class TestDockerDataPlane(DataPlaneContract):
    pass
