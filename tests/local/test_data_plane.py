from __future__ import annotations

from tests.contract import DataPlaneContract


class TestLocalDataPlane(DataPlaneContract):
    pass
