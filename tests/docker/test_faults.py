"""What goes wrong with containers, and an image that runs elsewhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests

from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.docker import DockerDataPlane
from mlflow_domino.engine import Engine
from mlflow_domino.errors import Failed, InvalidInput, NotFound, StartFailed, Unavailable, Unsupported
from mlflow_domino.models import Status
from tests.conftest import eventually, free_port
from tests.deployment import ECHO, Deployment
from tests.registry import PASSWORD, USER
from tests.registry import registry as closed_to_strangers

SLOW = "import time\ndef predict(s=0):\n    time.sleep(s)\n    return s\n"


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout


def plane_of(deployment: Deployment) -> DockerDataPlane:
    plane = deployment.controller.plane
    assert isinstance(plane, DockerDataPlane)
    return plane


def names(deployment: Deployment) -> list[str]:
    return sorted(c["Names"][0].lstrip("/") for c in plane_of(deployment).containers())


def status(deployment: Deployment, name: str) -> Status:
    return deployment.controller.endpoint(name).status


def test_a_container_that_is_killed_is_seen_comes_back_and_answers(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("mortal", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    (name,) = names(deployment)
    subprocess.run(["docker", "exec", name, "/bin/sh", "-c", "kill -9 -1"], check=False)  # it kills itself as well
    eventually(lambda: deployment.call(view, {"data": {}}).status_code == 200, within=20)
    eventually(lambda: status(deployment, "mortal") is Status.RUNNING)
    assert names(deployment) == [name]


def test_a_container_that_somebody_stopped_is_no_running_replica_and_starts_again(
    deployment: Deployment, tmp_path: Path
) -> None:
    view = deployment.create("halted", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    docker("stop", *names(deployment))
    seen = deployment.controller.endpoint("halted")
    assert seen.status is not Status.RUNNING
    assert "ended with code" in seen.reason
    assert deployment.controller.start("halted").status is Status.RUNNING
    assert deployment.call(view, {"data": {}}).json()["result"] == 1


def test_a_busy_replica_stays_routed(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("busy", deployment.project(tmp_path / "p", SLOW), threads=1, workers=1)
    codes: list[int] = []
    callers = [
        threading.Thread(target=lambda: codes.append(deployment.call(view, {"data": {"s": 3}}).status_code))
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert codes == [200, 200, 200]


def test_containers_are_found_again_when_the_gateway_has_gone(deployment: Deployment, tmp_path: Path) -> None:
    view = deployment.create("found", deployment.project(tmp_path / "p", ECHO, VALUE=1), replicas=2)
    before = {c["Id"] for c in plane_of(deployment).containers()}
    home = plane_of(deployment).home
    supervisor = psutil.Process(int((home.run / "supervisor.pid").read_text()))
    family = [supervisor, *supervisor.children(recursive=True)]
    supervisor.kill()
    psutil.wait_procs(family, timeout=10)
    assert status(deployment, "found") is Status.UNREACHABLE
    assert deployment.controller.up()
    eventually(lambda: deployment.call(view, {"data": {}}).status_code == 200)
    assert {c["Id"] for c in plane_of(deployment).containers()} == before


def test_a_container_of_no_record_goes_when_the_data_plane_starts(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("known", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    plane = plane_of(deployment)
    (known,) = plane.containers()
    labels = {**known["Labels"], "mlflow-domino.version": "f" * 24}
    options = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    docker("create", "--name", "mlflow-domino-stray", *options, known["Image"])
    plane.supervisor.stop()
    deployment.controller.up()
    assert [c["Id"] for c in plane.containers()] == [known["Id"]]


def test_an_image_that_is_gone_is_named(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("imageless", deployment.project(tmp_path / "p", ECHO, VALUE="imageless"))
    made = deployment.controller.find_version("imageless").artifact
    assert made is not None
    deployment.controller.stop("imageless")
    docker("rmi", "-f", made.environment)
    with pytest.raises(Exception, match=f"{made.environment}, is not on this machine any more"):
        deployment.controller.start("imageless")


def test_what_a_replica_says_is_in_the_log_and_a_failed_start_ends_its_containers(
    deployment: Deployment, tmp_path: Path
) -> None:
    code = "print('loading the weights', flush=True)\nraise SystemExit(3)\ndef predict():\n    return 1\n"
    with pytest.raises(StartFailed, match=r"sys\.exit\(3\)"):
        deployment.create("wordy", deployment.project(tmp_path / "p", code))
    (log,) = deployment.controller.plane.logs(deployment.controller.find_version("wordy"))
    assert "loading the weights" in log.read_text()
    assert names(deployment) == []


def test_a_replica_over_its_memory_is_named_as_that(deployment: Deployment, tmp_path: Path) -> None:
    config = deployment.home.config
    before = config.read_text()
    config.write_text(before + '[hardware_tiers.tiny]\ncores = 0.5\nmemory = "96Mi"\n')
    code = "held = bytearray(300 << 20)\nfor at in range(0, len(held), 4096):\n    held[at] = 1\ndef predict():\n    return 1\n"
    try:
        with pytest.raises(StartFailed, match="memory"):
            deployment.create("greedy", deployment.project(tmp_path / "p", code), hardware_tier="tiny")
        with pytest.raises(NotFound, match="there are: tiny"):
            deployment.create("tierless", deployment.project(tmp_path / "q", ECHO, VALUE=1), hardware_tier="small")
        deployment.create("tiny", deployment.project(tmp_path / "r", ECHO, VALUE=1), hardware_tier="tiny")
        host = json.loads(docker("inspect", *names(deployment)))[0]["HostConfig"]
        assert (host["NanoCpus"], host["Memory"]) == (500_000_000, 96 << 20)
    finally:
        config.write_text(before)


def test_containers_have_few_rights(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("modest", deployment.project(tmp_path / "p", ECHO, VALUE=1), request_timeout_s=7)
    (found,) = json.loads(docker("inspect", *names(deployment)))
    assert found["Config"]["User"] == "12574:12574"
    assert found["Config"]["StopTimeout"] == 12
    host = found["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert {b["HostIp"] for bindings in host["PortBindings"].values() for b in bindings} == {"127.0.0.1"}


@pytest.mark.parametrize("shared", [True, False], ids=["this kernel", "another kernel"])
def test_replicas_are_reached_by_sockets_where_that_is_possible_and_by_their_ports_in_any_case(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    if not shared:
        monkeypatch.setattr(Engine, "shares_kernel", lambda _engine: False)
    view = deployment.create("reached", deployment.project(tmp_path / "p", ECHO, VALUE="here"), replicas=2)
    plane = plane_of(deployment)
    addresses = plane.addresses(deployment.controller.find_version("reached"))
    assert len(set(addresses)) == 2
    assert all(Path(address).is_socket() is shared for address in addresses)
    assert deployment.call(view, {"data": {}}).json()["result"] == "here"
    for container in plane.containers():
        port, token = container["Labels"]["mlflow-domino.port"], (deployment.token, deployment.token)
        answer = requests.post(f"http://127.0.0.1:{port}/model", json={"data": {}}, auth=token, timeout=5)
        assert answer.json()["result"] == "here"
    deployment.controller.delete("reached")
    assert not any(Path(address).exists() for address in addresses)


def test_folders_of_this_machine_are_mounted(deployment: Deployment, tmp_path: Path) -> None:
    data, scratch = tmp_path / "data", tmp_path / "scratch"
    for folder in (data, scratch):
        folder.mkdir()
        folder.chmod(0o777)
    (data / "weights").write_text("12")
    code = """
    def predict():
        held = open("/data/weights").read()
        open("/scratch/made", "w").write(held)
        try:
            open("/data/more", "w")
        except OSError as error:
            return [held, error.strerror]
    """
    volumes = [
        {"name": "data", "mountPath": "/data", "path": str(data)},
        {"name": "scratch", "mountPath": "/scratch", "path": str(scratch), "readOnly": False},
    ]
    tmp_path.chmod(0o755)
    view = deployment.create("mounted", deployment.project(tmp_path / "p", code), volumes=volumes)
    assert deployment.call(view, {"data": {}}).json()["result"] == ["12", "Read-only file system"]
    assert (scratch / "made").read_text() == "12"
    absent = [{"name": "absent", "mountPath": "/data", "path": str(tmp_path / "absent")}]
    with pytest.raises(InvalidInput, match=f"absent: there is no folder {tmp_path}/absent"):
        deployment.update("mounted", volumes=absent)
    assert not (tmp_path / "absent").exists()


@pytest.fixture
def registry(engine: Engine) -> str:
    try:
        requests.get("http://localhost:5000/v2/", timeout=2).raise_for_status()
    except requests.RequestException as error:
        pytest.skip(f"no registry on localhost:5000: {error}")
    return "localhost:5000"


def test_an_exported_image_runs_by_itself_and_wants_a_token(
    deployment: Deployment, registry: str, tmp_path: Path
) -> None:
    deployment.create("travels", deployment.project(tmp_path / "p", ECHO, VALUE="abroad"))
    reference = f"{registry}/models/travels:1"
    assert deployment.controller.export("travels", reference).startswith("sha256:")
    docker("pull", "-q", reference)
    try:
        refused = subprocess.run(["docker", "run", "--rm", reference], capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        assert "DOMINO_TOKEN_SHA256" in refused.stderr
        port, digest = free_port(), hashlib.sha256(b"open-sesame").hexdigest()
        made = docker("run", "-d", "-p", f"127.0.0.1:{port}:8080", "-e", f"DOMINO_TOKEN_SHA256={digest}", reference)
        try:
            url = f"http://127.0.0.1:{port}"

            eventually(lambda: answers(url), within=20, every=0.1)
            token = ("open-sesame", "open-sesame")
            assert requests.post(f"{url}/model", json={"data": {}}, timeout=5).status_code == 401
            answer = requests.post(f"{url}/model", json={"data": {}}, auth=token, timeout=5)
            assert answer.json()["result"] == "abroad"
        finally:
            docker("rm", "-f", made.strip())
    finally:
        docker("rmi", "-f", reference)


def test_an_image_that_is_stopped_answers_whoever_waits(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("patient", deployment.project(tmp_path / "p", SLOW))
    made = deployment.controller.find_version("patient").artifact
    assert made is not None
    port = free_port()
    name = docker("run", "-d", "-p", f"127.0.0.1:{port}:8080", "-e", "DOMINO_AUTH=none", made.environment).strip()
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: answers(url), within=20, every=0.1)
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(requests.post, f"{url}/model", json={"data": {"s": 1}}, timeout=60) for _ in range(4)]
            eventually(lambda: queued(name) == 3)
            docker("stop", "--time", "30", name)
            assert [call.result().status_code for call in calls] == [200] * 4
    finally:
        docker("rm", "-f", name)


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/ready", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def queued(container: str) -> int:
    """Return how many connections wait to be accepted in a container that runs by itself."""
    lines = ("import sys", "sys.path.insert(0, '/opt/domino/harness')",
             "from _mlflow_domino_harness.leaving import waiting", "print(waiting([8080]))")  # fmt: skip
    program = "; ".join(lines)
    return int(docker("exec", container, "/opt/domino/environment/bin/python", "-c", program))


def test_a_push_that_is_refused_says_so(deployment: Deployment, tmp_path: Path) -> None:
    deployment.create("stays", deployment.project(tmp_path / "p", ECHO, VALUE=1))
    with pytest.raises(Unavailable, match=r"registry localhost:1 does not answer, so localhost:1/models/stays:1"):
        deployment.controller.export("stays", "localhost:1/models/stays:1")
    with closed_to_strangers(tmp_path / "registry", closed=True) as registry:
        reference = f"{registry.host}/models/stays:1"
        for user in (None, (USER, "wrong-passw0rd")):
            with pytest.raises(Failed, match=f"{registry.host} refuses the push of {reference}") as caught:
                deployment.controller.export("stays", reference, user=user)
            assert "wrong-passw0rd" not in str(caught.value)
        assert deployment.controller.export("stays", reference, user=(USER, PASSWORD)).startswith("sha256:")
    with pytest.raises(InvalidInput, match="registry/name:tag"):
        deployment.controller.export("stays", "no name")


def test_the_local_data_plane_has_no_images_to_export(deployment: Deployment) -> None:
    local = Controller.open("domino", home=deployment.home, recover=False)
    version = object()
    with pytest.raises(Unsupported, match="domino:/docker"):
        local.plane.export(version, "a/b:c", print)  # type: ignore[arg-type]
