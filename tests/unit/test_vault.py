"""The Secret that the pods of a cluster's gateway read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.vault import Vault
from mlflow_domino.errors import Conflict
from mlflow_domino.home import Home
from mlflow_domino.labels import GATEWAY
from tests.apiserver import ApiServer, api_server

QUEUE = "postgresql://me:hunter2@db.example/queue"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


class Vaults:
    """Vaults of one namespace, as several people declare it."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self._cluster = server.cluster(folder)
        self._home = Home(folder)

    def of(self, queue: str = "") -> Vault:
        return Vault(self._cluster, Declaration("prod", kind="kubernetes", queue=queue), self._home)

    def close(self) -> None:
        self._cluster.close()


@pytest.fixture
def vaults(server: ApiServer, tmp_path: Path) -> Iterator[Vaults]:
    vaults = Vaults(server, tmp_path)
    yield vaults
    vaults.close()


def test_a_management_token_is_made_once(server: ApiServer, vaults: Vaults) -> None:
    assert vaults.of().management_token() == ""
    assert vaults.of().put() == ""
    token = vaults.of().management_token()
    assert len(token) == 64
    vaults.of().put()
    assert server.secret(GATEWAY) == {"management-token": token}


def test_a_queue_is_kept_and_its_mark_tells_nothing_of_it(server: ApiServer, vaults: Vaults) -> None:
    assert vaults.of(QUEUE).lacks_queue()
    mark = vaults.of(QUEUE).put()
    assert server.secret(GATEWAY)["queue"] == QUEUE
    assert vaults.of().has_queue()
    assert not vaults.of(QUEUE).lacks_queue()
    assert mark == vaults.of(QUEUE).put() != ""
    assert "hunter2" not in mark
    assert mark != vaults.of(QUEUE.replace("hunter2", "hunter3")).put()


def test_who_declares_no_queue_leaves_that_of_others(server: ApiServer, vaults: Vaults) -> None:
    mark = vaults.of(QUEUE).put()
    assert vaults.of().put() == mark
    assert server.secret(GATEWAY)["queue"] == QUEUE


def test_a_queue_that_is_not_the_gateways_is_refused_without_showing_either(vaults: Vaults) -> None:
    vaults.of(QUEUE).put()
    vaults.of(QUEUE).check_queue()
    vaults.of().check_queue()
    with pytest.raises(Conflict, match=r"has another queue than `queue` under \[data_planes.prod\]") as caught:
        vaults.of("postgresql://me:secret@elsewhere/queue").check_queue()
    assert "hunter2" not in str(caught.value)
    assert "elsewhere" not in str(caught.value)
