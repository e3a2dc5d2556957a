"""The objects as real servers read them, and a pod as its node runs it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from mlflow_domino import source
from mlflow_domino.builder import builder_of
from mlflow_domino.cluster import Cluster
from mlflow_domino.config import Secrets, parse
from mlflow_domino.data_planes.assembly import Assembly
from mlflow_domino.data_planes.installation import gateway_secret
from mlflow_domino.data_planes.manifests import MODEL_PORT, PROBE_PORT, Place, variables_manifest
from mlflow_domino.data_planes.tier import Tier
from mlflow_domino.dialect import Manifest
from mlflow_domino.home import Home
from mlflow_domino.labels import VERSION, model_name, tokens_name
from mlflow_domino.models import Version
from tests.conftest import eventually
from tests.kubernetes.conftest import REGISTRY
from tests.published import DECLARATIONS, ENDPOINT, SETTINGS, TIERS, gateway_objects, objects, published

#: Says what it finds around it, in the log.
SCRIPT = """
import json, os

def written(path):
    try:
        open(os.path.join(path, "probe"), "w").close()
        return True
    except OSError as error:
        return error.strerror

print("FOUND " + json.dumps({
    "ids": [os.getuid(), os.getgid()],
    "names": sorted(os.environ),
    "A": [ord(c) for c in os.environ.get("A", "")],  # in clear it would be redacted
    "written": {path: written(path) for path in (os.getcwd(), "/tmp", "/run/domino/tokens", "/node")},
    "node": os.path.isdir("/node/bin"),
}), flush=True)

def predict():
    return 1
"""


def everything(place: Place) -> Iterator[tuple[str, Manifest]]:
    for name, config in SETTINGS.items():
        version = published(**config)
        found = objects(version, place=place, variables=["A"]).values()
        yield from ((f"settings {name}", one) for one in found)
        yield f"variables {name}", variables_manifest(place, ENDPOINT, version, {"A": "ü\n"})
    for name, tier in TIERS.items():
        found = objects(published(replicas=2), tier, place=replace(place, pull_secret="pull")).values()
        yield from ((f"tier {name}", one) for one in found)
    for name, declared in DECLARATIONS.items():
        yield from ((f"gateway {name}", one) for one in gateway_objects(place=place, **declared).values())
    yield "gateway secret", gateway_secret(place, {"management-token": "t"})


def missing(wanted: Any, found: Any, at: str = "") -> list[str]:
    """Return where an answer lacks what was sent: servers drop fields that they do not know."""
    if isinstance(wanted, dict):
        return [m for k, v in wanted.items() for m in missing(v, (found or {}).get(k), f"{at}.{k}")]
    if isinstance(wanted, list | tuple):
        if not isinstance(found, list) or len(found) != len(wanted):
            return [f"{at}: {found!r}"]
        return [m for n, v in enumerate(wanted) for m in missing(v, found[n], f"{at}[{n}]")]
    return [] if wanted == found or (not wanted and not found) else [f"{at}: {found!r} for {wanted!r}"]


def test_servers_take_every_object_with_every_field(namespace: Cluster) -> None:
    for name, one in everything(Place(namespace.namespace)):
        sent = {key: value for key, value in one.items() if key != "stringData"}
        if one["kind"] in ("Role", "RoleBinding"):
            sent.pop("apiVersion")
        answer = namespace.create(one, dry_run=True)
        assert not missing(sent, answer), f"{name}: {one['kind']}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Version, str]]:
    """A version of a project, and the image of it that clusters can pull."""
    home = Home(tmp_path_factory.mktemp("home"))
    project = tmp_path_factory.mktemp("project")
    (project / "app.py").write_text(SCRIPT)
    (project / "broken.py").write_text("raise RuntimeError('no weights here')\n")
    settings = parse({"file": "app.py"})[0]
    version = replace(published(), settings=settings)
    fetched = source.fetch(str(project), settings, home.version(version.id), lambda _: None)
    version = replace(version, source=fetched)
    assembly = Assembly(home, builder_of, "python:{python}-slim-bookworm")
    artifact = assembly.build(version, Secrets(), lambda _: None, registry=f"{REGISTRY}/test-manifests")
    yield version, artifact.environment
    assembly.discard(replace(version, artifact=artifact))


def tokens_file() -> str:
    return json.dumps({"tokens": [{"id": "t", "sha256": hashlib.sha256(b"T" * 64).hexdigest()}]})


def apply(namespace: Cluster, version: Version, image: str, tier: Tier, variables: dict[str, str]) -> None:
    """Make the objects of one replica, and the Secrets that it reads."""
    place = Place(namespace.namespace)
    meta = {"name": tokens_name(ENDPOINT.id), "namespace": namespace.namespace}
    tokens = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": {"tokens.json": tokens_file()}}
    found = objects(version, tier, place=place, image=image, variables=variables)
    for one in (tokens, variables_manifest(place, ENDPOINT, version, variables), *found.values()):
        namespace.apply(one)


def start(namespace: Cluster, version: Version, image: str, tier: Tier, variables: dict[str, str]) -> str:
    """Run one replica; return its pod's name when it is ready."""
    apply(namespace, version, image, tier, variables)
    eventually(lambda: ready(namespace, version), within=90, every=0.2)
    return str(pods(namespace, version)[0]["metadata"]["name"])


def pods(namespace: Cluster, version: Version) -> list[Manifest]:
    return list(namespace.list("Pod", {VERSION: version.id}))


def ready(namespace: Cluster, version: Version) -> bool:
    deployment = namespace.get("Deployment", model_name(version.id)) or {}
    return bool(deployment.get("status", {}).get("readyReplicas")) and len(pods(namespace, version)) == 1


def stop(namespace: Cluster, version: Version) -> None:
    for kind in ("Deployment", "Service", "ConfigMap"):
        namespace.delete(kind, model_name(version.id))
    eventually(lambda: not pods(namespace, version), within=90)


def found_in(namespace: Cluster, pod: str) -> dict[str, Any]:
    lines = namespace.pod_log(pod, "model").splitlines()
    line = next(line for line in lines if "FOUND " in line)
    document: dict[str, Any] = json.loads(line.partition("FOUND ")[2])
    return document


def test_a_projects_pod_finds_what_a_replica_needs_and_little_more(
    namespace: Cluster, built: tuple[Version, str]
) -> None:
    version, image = built
    pod = start(namespace, version, image, Tier(cores=0.5, memory=256 << 20), {"A": "ü $(B) %x"})
    try:
        found = found_in(namespace, pod)
        assert found["ids"] == [12574, 12574]
        assert found["A"] == list(map(ord, "ü $(B) %x"))
        assert found["written"]["/mnt/domino/project"] is True
        assert found["written"]["/tmp"] is True
        assert found["written"]["/run/domino/tokens"] == "Read-only file system"
        assert not [name for name in found["names"] if name.startswith(("MODEL_", "MLFLOW_"))]  # of services
        status, headers, _ = namespace.proxy(pod, PROBE_PORT, "/ready")
        digest = hashlib.sha256(tokens_file().encode()).hexdigest()
        assert (status, headers["X-Domino-Tokens"]) == (200, digest)
        assert namespace.proxy(pod, MODEL_PORT, "/model", method="POST")[0] == 401
    finally:
        stop(namespace, version)


def test_a_pod_with_a_read_only_root_and_a_volume_starts(namespace: Cluster, built: tuple[Version, str]) -> None:
    volume = {"name": "node", "mountPath": "/node", "path": "/usr"}
    settings = parse({"file": "app.py", "read_only_root": True, "volumes": [volume], "workers": 2})[0]
    version = replace(built[0], id="fedcba9876543210fedcba98", settings=settings)
    pod = start(namespace, version, built[1], Tier(spot=True), {})
    try:
        found = found_in(namespace, pod)
        closed = "Read-only file system"
        assert found["written"] == {
            "/mnt/domino/project": closed,
            "/tmp": True,
            "/run/domino/tokens": closed,
            "/node": closed,
        }
        assert found["node"]
    finally:
        stop(namespace, version)


def test_a_pod_whose_model_is_broken_ends_and_leaves_its_reason(namespace: Cluster, built: tuple[Version, str]) -> None:
    broken = replace(built[0].source, file="broken.py")  # type: ignore[call-arg] - it is a FileSource
    version = replace(built[0], id="00112233445566778899aabb", source=broken)
    apply(namespace, version, built[1], Tier(), {})
    try:
        eventually(lambda: last_words(namespace, version), within=90, every=0.5)
        assert last_words(namespace, version)["reason"] == "the model cannot be loaded: RuntimeError: no weights here"
    finally:
        stop(namespace, version)


def last_words(namespace: Cluster, version: Version) -> dict[str, Any]:
    for pod in pods(namespace, version):
        for status in pod["status"].get("containerStatuses") or ():
            for state in (status["state"], status["lastState"]):
                if (state.get("terminated") or {}).get("message"):
                    document: dict[str, Any] = json.loads(state["terminated"]["message"])
                    return document
    return {}
