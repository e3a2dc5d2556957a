"""Half a minute of faults at random, with predictions on their way; `tests.benchmarks.predictions_faults` takes longer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlflow_domino.controller import Controller
from mlflow_domino.home import Home
from tests.benchmarks.predictions_faults import Fault, Trial, full_disk, outage, small_disk
from tests.postgresql import PostgreSQL, postgresql

_SECONDS = 30.0
_COUNT = 300
#: What is lost with a dispatcher is another one's after half a minute.
_PATIENCE_S = 240.0


@pytest.fixture
def plane(home: Home) -> Iterator[Controller]:
    """The local data plane, which is brought down afterwards, with its one endpoint."""
    controller = Controller.open(home=home)
    yield controller
    for view in controller.endpoints():
        controller.delete(view.endpoint.name)
    controller.down()


@pytest.fixture
def disk(home: Home, tmp_path: Path) -> Iterator[Path | None]:
    """A small disk with the queue on it, None where none can be mounted."""
    with small_disk(tmp_path / "disk") as mounted:
        if mounted:
            home.predictions.symlink_to(tmp_path / "disk" / "predictions.db")
        yield tmp_path / "disk" if mounted else None
        home.predictions.unlink(missing_ok=True)


@pytest.fixture
def server(home: Home) -> Iterator[PostgreSQL]:
    """A PostgreSQL that the data plane has its queue in."""
    server = postgresql()
    before = home.config.read_text()
    home.config.write_text(f'{before}queue = "{server.url}"\n')
    yield server
    home.config.write_text(before)
    server.remove()


def survive(controller: Controller, home: Home, folder: Path, faults: dict[str, Fault]) -> None:
    trial = Trial.make(controller, home, folder / "p", _SECONDS, _COUNT, faults=faults)
    print(trial.survive(within_s=_PATIENCE_S))


@pytest.mark.slow
def test_with_sqlite_every_acknowledged_prediction_is_answered_once(
    disk: Path | None, plane: Controller, home: Home, tmp_path: Path
) -> None:
    survive(plane, home, tmp_path, {} if disk is None else {"full disk": full_disk(disk)})


@pytest.mark.slow
def test_with_postgresql_every_acknowledged_prediction_is_answered_once(
    server: PostgreSQL, plane: Controller, home: Home, tmp_path: Path
) -> None:
    survive(plane, home, tmp_path, {"PostgreSQL": outage(server)})
