"""Images of asynchronous versions: both environments in one, closed to everybody but the gateway, or open to Seldon Core."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlflow_domino import prune
from mlflow_domino.context import entries
from mlflow_domino.engine import Engine
from mlflow_domino.errors import EnvironmentFailed
from mlflow_domino.models import Artifact, Version
from mlflow_domino.views import EndpointView
from tests.builders import Made
from tests.conftest import eventually, free_port
from tests.deployment import ECHO, Deployment
from tests.messages import CLIENT, ask, interpreter, predict, save_modern
from tests.seldon import seldon_python

BASE = "python:3.11-slim-bookworm"
DOUBLE = "def predict(x=0):\n    return x * 2\n"


@pytest.fixture
def image(engine: Engine) -> Iterator[Made]:
    made = Made(engine)
    yield made
    made.clean()


@pytest.fixture(scope="module")
def base_313(engine: Engine) -> Iterator[str]:
    """An environment whose only Python that is on its PATH is none that seldon-core runs on."""
    python = interpreter("3.13")
    if python is None:
        pytest.skip("no Python 3.13 on this machine")
    root = python.parents[1]
    made = Made(engine)
    recipe = (
        f"FROM {BASE}\nCOPY python {root}\n"
        f"RUN chmod o+rx {' '.join(map(str, root.parents[:-1]))}; ln -sf {root}/bin/python3.13 /usr/local/bin/python3\n"
    )
    members = [e for e in entries(root, "python") if "/lib/python3.13/test/" not in e.name]
    yield made("python-313", recipe, *members)
    made.clean()


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
    deployment: Deployment, tmp_path: Path, minor: str, request: pytest.FixtureRequest
) -> None:
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"no Python {minor} on this machine")
    own = {"environment": request.getfixturevalue("base_313")} if minor == "3.13" else {}
    view = deployment.create(f"modern-{minor}", str(save_modern(python, tmp_path)), is_async=True, **own)
    assert version_of(view)[1].python_version.startswith(f"{minor}.")
    answer = predict(*address_and_token(deployment, view), x=1.5, text="é")
    assert answer.status == 200, answer.body
    assert answer.json["jsonData"] == [{"twice": 3.0, "text": "É"}]


def seldon_layers(engine: Engine, view: EndpointView) -> tuple[str, ...]:
    """Return the layers of the image with seldon-core that a version's is built on."""
    made = engine.image(version_of(view)[1].environment)
    assert made is not None
    below = [i.layers for i in engine.images("mlflow-domino/seldon") if made.layers[: len(i.layers)] == i.layers]
    return tuple(max(below, key=len))


def test_versions_share_the_layer_of_seldon_core(deployment: Deployment, engine: Engine, tmp_path: Path) -> None:
    first = seldon_layers(
        engine, deployment.create("shares", deployment.project(tmp_path / "1", DOUBLE), is_async=True)
    )
    deployment.said.clear()
    view = deployment.update("shares", deployment.project(tmp_path / "2", DOUBLE), environment="idna")
    assert not [line for line in deployment.said if "mlflow-domino/seldon" in line]
    assert seldon_layers(engine, view) == first
    assert predict(*address_and_token(deployment, view), x=4).json["jsonData"] == 8


def test_the_port_for_messages_is_the_gateways_alone(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("closed", deployment.project(tmp_path / "p", DOUBLE), is_async=True)
    address, token = address_and_token(deployment, view)
    assert address.startswith("127.0.0.1:")
    for wrong in ("", deployment.token, "x"):
        assert predict(address, wrong, x=1).status == 401
        assert ask(address, "GET", "/metrics", token=wrong).status == 401
    assert predict(address, token, x=1).status == 200


@pytest.mark.parametrize("which", ["master", "worker"])
def test_a_microservice_that_is_killed_comes_back_in_its_container(
    deployment: Deployment, tmp_path: Path, which: str
) -> None:
    view = deployment.create(f"killed-{which}", deployment.project(tmp_path / "p", ECHO, VALUE=7), is_async=True)
    address, token = address_and_token(deployment, view)
    version, _ = version_of(view)
    engine: Engine = deployment.controller.plane.engine  # type: ignore[attr-defined]
    started = engine.container(f"model-{version.id}-0")["State"]["StartedAt"]  # type: ignore[index]
    master, worker = microservice(started_in=engine.container(f"model-{version.id}-0")["State"]["Pid"])  # type: ignore[index]
    (master if which == "master" else worker).kill()
    eventually(lambda: not worker.is_running())

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return predict(address, token).status == 200
        return False

    eventually(answers, within=30)
    assert engine.container(f"model-{version.id}-0")["State"]["StartedAt"] == started  # type: ignore[index]


def microservice(*, started_in: int) -> tuple[psutil.Process, psutil.Process]:
    """Return the microservice's processes of a container: the master, and the one that serves."""
    for process in psutil.Process(started_in).children(recursive=True):
        if process.cmdline()[-1:] == ["/opt/domino/harness/_mlflow_domino_harness/seldon.py"]:
            return process, process.children()[0]
    raise AssertionError("there is no microservice")


# ---- environments of a user's own ------------------------------------------------------------------------------------


def test_an_image_that_carries_seldon_core_is_used_as_it_is(
    deployment: Deployment, image: Made, tmp_path: Path, engine: Engine
) -> None:
    made = deployment.create("first", deployment.project(tmp_path / "1", DOUBLE), is_async=True)
    layers = engine.image(version_of(made)[1].environment)
    assert layers is not None
    # As the standard environment has it, out of what is here already.
    carries = next(i for i in engine.images("mlflow-domino/seldon") if layers.layers[: len(i.layers)] == i.layers)
    own = image("standard", f"FROM {carries.names[0]}\nRUN ln -s microservice /opt/domino/seldon")
    deployment.said.clear()
    view = deployment.create("standard", deployment.project(tmp_path / "2", DOUBLE), is_async=True, environment=own)
    assert version_of(view)[1].seldon == "/opt/domino/seldon/bin/python"
    assert not [line for line in deployment.said if "mlflow-domino/seldon" in line]
    assert predict(*address_and_token(deployment, view), x=4).json["jsonData"] == 8


def test_an_image_that_is_to_stay_as_it_is_must_have_seldon_core(deployment: Deployment, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="lacks seldon-core"):
        deployment.create(
            "bare", deployment.project(tmp_path / "p", DOUBLE), is_async=True, install_harness_packages=False,
            environment=f"{BASE},flask,six,pyuwsgi,prometheus-client",
        )  # fmt: skip


@pytest.mark.slow
def test_a_versions_own_packages_may_have_seldon_core(deployment: Deployment, tmp_path: Path) -> None:
    project = deployment.project(
        tmp_path / "p", "import seldon_core\ndef predict():\n    return seldon_core.__name__\n"
    )
    view = deployment.create(
        "brought", project, is_async=True, install_harness_packages=False,
        environment=f"{BASE},flask,six,pyuwsgi,prometheus-client,seldon-core==1.18.2",
    )  # fmt: skip
    assert version_of(view)[1].seldon == "/opt/domino/environment/bin/python"
    assert predict(*address_and_token(deployment, view)).json["jsonData"] == "seldon_core"


def test_where_no_interpreter_can_be_had_the_way_out_is_named(
    deployment: Deployment, base_313: str, tmp_path: Path
) -> None:
    config = deployment.home.config
    before = config.read_text()
    config.write_text(before + 'base_image = "localhost:1/none:{python}"\n')
    try:
        with pytest.raises(EnvironmentFailed, match="environments/standard"):
            deployment.create("stuck", deployment.project(tmp_path / "p", DOUBLE), is_async=True, environment=base_313)
    finally:
        config.write_text(before)


def test_prune_keeps_the_layer_that_a_version_is_built_on(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("kept", deployment.project(tmp_path / "p", DOUBLE), is_async=True)
    kept = {item.name for item in prune.plan(deployment.controller, older_than_s=0) if "/seldon:" in item.name}
    deployment.controller.delete("kept")
    freed = {item.name for item in prune.plan(deployment.controller, older_than_s=0) if "/seldon:" in item.name}
    assert kept <= freed


# ---- elsewhere -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(image: str, **environment: str) -> Iterator[dict[int, str]]:
    """Run an image as anybody would; gives the addresses of its ports."""
    ports = {port: f"127.0.0.1:{free_port()}" for port in (8080, 9000, 6000)}
    options = [f"-p{address}:{port}" for port, address in ports.items()]
    options += [f"-e{name}={value}" for name, value in environment.items()]
    command = ["docker", "run", "-d", "--rm", *options, image]
    container = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        yield ports
    finally:
        subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=True)


def ready(address: str) -> bool:
    with contextlib.suppress(OSError):
        return ask(address, "GET", "/ready").status == 200
    return False


@pytest.fixture(scope="module")
def anywhere(engine: Engine, home: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image of an asynchronous version."""
    from mlflow_domino.home import Home

    assert isinstance(home, Home)
    deployment = Deployment(home, "domino:/docker")
    code = "def predict(a, b=2):\n    return {'sum': a + b}\n"
    view = deployment.create("anywhere", deployment.project(tmp_path_factory.mktemp("p"), code), is_async=True)
    yield version_of(view)[1].environment
    deployment.clean()


def test_seldon_cores_own_client_is_served_by_the_same_image(
    anywhere: str, tmp_path: Path, shared_environments: Path
) -> None:
    python = seldon_python(tmp_path / "home", shared_environments)
    with running(anywhere, DOMINO_AUTH="none", PREDICTIVE_UNIT_METRICS_ENDPOINT="/prometheus") as ports:
        eventually(lambda: ready(ports[9000]), within=60)
        ended = subprocess.run(
            [python, "-W", "ignore", "-c", CLIENT, ports[9000]], capture_output=True, text=True, check=True
        )
        first, second, third, wrong = json.loads(ended.stdout.splitlines()[-1])
        assert first[:2] == second[:2] == third[:2] == [True, 3.0]
        assert wrong[0] is False
        assert ask(ports[9000], "GET", "/health/status").json["strData"] == "healthy"
        assert ask(ports[9000], "GET", "/health/ping").body == b"pong"
        assert "domino_predictions_total" in ask(ports[6000], "GET", "/prometheus").body.decode()


def test_elsewhere_its_port_is_closed_without_a_token_of_the_environments(anywhere: str) -> None:
    token = "elsewhere"
    with running(anywhere, DOMINO_TOKEN_SHA256=hashlib.sha256(token.encode()).hexdigest()) as ports:
        eventually(lambda: ready(ports[9000]), within=60)
        assert predict(ports[9000], "", a=1).status == 401
        assert predict(ports[9000], token, a=1).json["jsonData"] == {"sum": 3}
        with pytest.raises(OSError, match=r"reset|refused|closed"):
            ask(ports[6000], "GET", "/metrics")


def test_on_another_port_where_the_environment_says_so(anywhere: str) -> None:
    with running(anywhere, DOMINO_AUTH="none", PREDICTIVE_UNIT_HTTP_SERVICE_PORT="6000") as ports:
        eventually(lambda: ready(ports[6000]), within=60)
        assert predict(ports[6000], "", a=1).status == 200
