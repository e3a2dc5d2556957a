from __future__ import annotations

import pytest

from tests.contract import DataPlaneContract


@pytest.fixture(scope="module")
def context() -> str:
    return "remote"


class TestRemoteDataPlane(DataPlaneContract):
    pass
