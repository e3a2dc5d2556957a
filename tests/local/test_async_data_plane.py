"""Asynchronous versions on the local data plane: two environments, and a socket that takes Seldon's messages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from mlflow_domino.config import Secrets, parse
from mlflow_domino.environment import Environments
from mlflow_domino.errors import EnvironmentFailed
from mlflow_domino.home import Home
from mlflow_domino.interpreter import Search
from mlflow_domino.models import Artifact, Version
from mlflow_domino.views import EndpointView
from tests.deployment import Deployment
from tests.messages import interpreter, predict, save_modern


def version_of(view: EndpointView) -> tuple[Version, Artifact]:
    assert view.current is not None
    version = view.current.version
    assert version.artifact is not None
    return version, version.artifact


def address_and_token(deployment: Deployment, view: EndpointView) -> tuple[str, str]:
    (address,) = deployment.controller.plane.message_addresses(version_of(view)[0])  # type: ignore[attr-defined]
    return address, deployment.home.gateway_token(view.endpoint.id).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("minor", ["3.11", "3.13"])
def test_a_model_that_seldon_core_could_not_be_installed_with_is_served(
    deployment: Deployment, tmp_path: Path, minor: str
) -> None:
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"no Python {minor} on this machine")
    view = deployment.create(f"modern-{minor}", str(save_modern(python, tmp_path)), is_async=True)
    assert version_of(view)[1].python_version.startswith(f"{minor}.")
    answer = predict(*address_and_token(deployment, view), x=1.5, text="é")
    assert answer.status == 200, answer.body
    assert answer.json["jsonData"] == [{"twice": 3.0, "text": "É"}]


def test_versions_share_the_environment_of_seldon_core_and_its_lock_is_kept(
    deployment: Deployment, tmp_path: Path
) -> None:
    project = deployment.project(tmp_path / "p", "def predict(x=0):\n    return x * 2\n")
    first = deployment.create("twice", project, is_async=True)
    second = deployment.update("twice", project, environment="idna")
    assert version_of(first)[1].seldon == version_of(second)[1].seldon
    assert version_of(first)[1].environment != version_of(second)[1].environment
    lock = (deployment.home.version(version_of(second)[0].id) / "seldon.lock").read_text()
    assert "seldon-core==1.18.2" in lock
    assert "--hash=" in lock
    assert "seldon" not in (deployment.home.version(version_of(second)[0].id) / "requirements.lock").read_text()
    assert predict(*address_and_token(deployment, second), x=4).json["jsonData"] == 8


def test_asynchronous_work_stands_back_for_whoever_waits(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "p", "import os\ndef predict():\n    return os.nice(0)\n")
    own = os.nice(0)
    assert deployment.call(deployment.create("waited-for", project), {"data": {}}).json()["result"] == own
    view = deployment.create("behind", project, is_async=True)
    assert predict(*address_and_token(deployment, view)).json["jsonData"] == min(19, own + 10)


def test_an_environment_that_somebody_removed_is_made_again_of_its_lock(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "p", "def predict(x=0):\n    return x * 2\n")
    view = deployment.create("removed", project, is_async=True)
    deployment.controller.stop("removed")
    shutil.rmtree(deployment.home.environments / version_of(view)[1].seldon)
    view = deployment.controller.start("removed")
    assert predict(*address_and_token(deployment, view), x=4).json["jsonData"] == 8


def test_a_replica_whose_microservice_was_killed_is_said_to_be_starting_again(
    deployment: Deployment, tmp_path: Path
) -> None:
    view = deployment.create(
        "killed", deployment.project(tmp_path / "p", "def predict():\n    return 1\n"), is_async=True
    )
    version, _ = version_of(view)
    address, _ = address_and_token(deployment, view)
    Path(address).unlink()  # as between its end and its start
    (seen,) = deployment.controller.plane.observe([version])
    assert "started again" in seen.reason


def test_a_synchronous_version_has_none_of_it(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("plain", deployment.project(tmp_path / "p", "def predict():\n    return 1\n"))
    assert version_of(view)[1].seldon == ""
    assert not (deployment.home.version(version_of(view)[0].id) / "seldon.lock").exists()


def test_an_environment_that_is_to_stay_as_it_is_must_have_seldon_core(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(tmp_path / "p", "def predict():\n    return 1\n")
    with pytest.raises(EnvironmentFailed, match="lacks seldon-core"):
        deployment.create(
            "bare", project, is_async=True, install_harness_packages=False,
            environment="flask,six,pyuwsgi,prometheus-client",
        )  # fmt: skip


@pytest.mark.slow
def test_a_project_may_bring_seldon_core_in_its_own_environment(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(
        tmp_path / "p", "import seldon_core\ndef predict():\n    return seldon_core.__name__\n"
    )
    view = deployment.create(
        "own", project, is_async=True, install_harness_packages=False, python_version="3.11",
        environment="flask,six,pyuwsgi,prometheus-client,seldon-core==1.18.2",
    )  # fmt: skip
    artifact = version_of(view)[1]
    assert artifact.seldon == artifact.environment
    assert predict(*address_and_token(deployment, view)).json["jsonData"] == "seldon_core"


def test_without_an_interpreter_for_seldon_core_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow_domino import seldon

    nowhere = {"HOME": str(tmp_path), "PATH": "", "PYENV_ROOT": str(tmp_path), "UV_PYTHON_INSTALL_DIR": str(tmp_path)}
    monkeypatch.setattr(Search, "here", classmethod(lambda cls: cls(nowhere, None)))
    settings, _ = parse({"python_downloads": False})
    with pytest.raises(EnvironmentFailed) as caught:
        seldon.build(Environments(Home(tmp_path / "home")), settings, Secrets(), lambda _line: None)
    assert "3.10 to 3.12" in caught.value.message
    assert "uv python install 3.12" in caught.value.message
