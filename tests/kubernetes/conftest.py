"""Real clusters: the contexts `local` and `remote` of the kubeconfig, and namespaces in them that tests have to themselves."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlflow_domino.builder import builder_of
from mlflow_domino.cluster import Cluster
from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.fleet import runs
from mlflow_domino.errors import DominoError
from mlflow_domino.home import Home
from mlflow_domino.labels import GATEWAY_TOKENS, KIND, MANAGED
from tests.conftest import eventually
from tests.contract import ENDING_S, ImagesOf, Things, files_of
from tests.deployment import Deployment
from tests.kubernetes.people import REGISTRY, People
from tests.kubernetes.site import Site
from tests.kubernetes.stage import V1, V2

CONTEXTS = ("local", "remote")


def reached(context: str) -> Cluster:
    """Return a cluster that answers; skip the test where none does."""
    cluster = Cluster(context, "default")
    try:
        cluster.version()
    except DominoError as error:
        pytest.skip(f"no cluster {context!r}: {error}")
    return cluster


@pytest.fixture(scope="module")
def context() -> str:
    """The cluster of a module that does not say which; the contract of data planes runs on both."""
    reached(CONTEXTS[0]).close()
    return CONTEXTS[0]


@pytest.fixture(scope="module")
def namespace(context: str) -> Iterator[Cluster]:
    """A new namespace of the cluster, removed afterwards."""
    with a_namespace(context) as inside:
        yield inside


@pytest.fixture(scope="module")
def elsewhere(context: str) -> Iterator[Cluster]:
    """A new namespace of the other cluster."""
    with a_namespace(next(c for c in CONTEXTS if c != context)) as inside:
        yield inside


@pytest.fixture(scope="session", autouse=True)
def _gone() -> Iterator[None]:
    """See each namespace that was used go, and so everything in it."""
    yield
    for context, name in _used:
        with contextlib.closing(Cluster(context, "default")) as cluster:
            eventually(lambda: cluster.get("Namespace", name) is None, within=240, every=0.5)  # noqa: B023 - called at once


_used: list[tuple[str, str]] = []


@contextlib.contextmanager
def a_namespace(context: str) -> Iterator[Cluster]:
    cluster = reached(context)
    name = f"test-{secrets.token_hex(4)}"
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    inside = Cluster(context, name)
    try:
        yield inside
    finally:
        _used.append((context, name))
        cluster.delete("Namespace", name)
        for pod in inside.list("Pod"):  # an old kubelet keeps what is left of one for a minute
            inside.delete("Pod", pod["metadata"]["name"], grace_s=0)
        inside.close()
        cluster.close()


@pytest.fixture(scope="module")
def plane_home(
    namespace: Cluster, tmp_path_factory: pytest.TempPathFactory, shared_environments: Path
) -> Iterator[Home]:
    """A home that declares the namespace as the data plane `kube`; nothing of it may be left there afterwards."""
    try:
        builder_of()
    except DominoError as error:
        pytest.skip(f"nothing builds images: {error}")
    home = Home(tmp_path_factory.mktemp("home"))
    (home.root / "config.toml").write_text(
        f'[data_planes.kube]\nkind = "kubernetes"\ncontext = "{namespace.context}"\n'
        f'namespace = "{namespace.namespace}"\nregistry = "{REGISTRY}"\ngateway_replicas = 2\n'
    )
    home.environments.symlink_to(shared_environments)
    yield home
    controller = Controller.open("domino:/kube", home=home, recover=False)
    assert not controller.endpoints()
    controller.down()
    eventually(lambda: not left_behind(namespace), within=60)


def left_behind(namespace: Cluster) -> list[str]:
    """Return what is in the namespace that Kubernetes did not put there and is not removing, but for the gateway's address."""
    kinds = ("Deployment", "ReplicaSet", "Pod", "ConfigMap", "Secret", "Service", "PodDisruptionBudget")
    there = [one for kind in kinds for one in namespace.list(kind)]
    found = [f"{o['kind']} {o['metadata']['name']}" for o in there if "deletionTimestamp" not in o["metadata"]]
    own = ("Service mlflow-domino-gateway", "Secret mlflow-domino-gateway", "ConfigMap kube-root-ca.crt")
    return [one for one in found if not one.startswith((*own, "Secret default-token"))]


def objects_of(cluster: Cluster) -> list[str]:
    """Return everything that somebody made in a namespace, its gateway too."""
    found = [f"Service {s['metadata']['name']}" for s in cluster.list("Service")]
    found += [f"{k} {o['metadata']['name']}" for k in ("Role", "RoleBinding", "Lease") for o in cluster.list(k)]
    accounts = [f"ServiceAccount {o['metadata']['name']}" for o in cluster.list("ServiceAccount")]
    tokens = [
        f"Secret {o['metadata']['name']}" for o in cluster.list("Secret") if "-token-" not in o["metadata"]["name"]
    ]
    return sorted({*left_behind(cluster), *found, *accounts, *tokens} - {"ServiceAccount default"})


@pytest.fixture
def things(plane_home: Home, namespace: Cluster) -> Callable[[], Things]:
    images = ImagesOf(plane_home, builder_of())
    eventually(lambda: not of_endpoints(namespace), within=ENDING_S)  # pods of tests before this one
    return lambda: {"objects": of_endpoints(namespace), "images": images(), "files": files_of(plane_home)}


def of_endpoints(namespace: Cluster) -> set[str]:
    """Return the objects of endpoints and versions, locks included, and their gateway's tokens.

    Pods count as long as they run; what is left of one the cluster itself may keep for a while.
    """
    kinds = ("ConfigMap", "Secret", "Lease", "Deployment", "ReplicaSet", "Pod", "Service", "PodDisruptionBudget")
    there = [one for kind in kinds for one in namespace.list(kind, f"{MANAGED},{KIND} notin (gateway,generation)")]
    there = [one for one in there if "deletionTimestamp" not in one["metadata"] or (one["kind"] == "Pod" and runs(one))]
    tokens = (namespace.get("Secret", GATEWAY_TOKENS) or {}).get("data") or {}
    return {f"{one['kind']} {one['metadata']['name']}" for one in there} | {f"token {key}" for key in tokens}


@pytest.fixture
def deployment(plane_home: Home) -> Iterator[Deployment]:
    deployment = Deployment(plane_home, "domino:/kube")
    yield deployment
    deployment.clean()


@pytest.fixture(scope="module")
def site(namespace: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    try:
        builder_of()
    except DominoError as error:
        pytest.skip(f"nothing builds images: {error}")
    home = Home(tmp_path_factory.mktemp("home"))
    home.ensure()
    site = Site(namespace, home, REGISTRY)
    site.entrance.install()
    yield site
    site.entrance.uninstall(force=True)


@pytest.fixture
def serving(site: Site) -> Site:
    """Version 1 of the endpoint runs with two replicas, and is routed."""
    site.stage.version(V1)
    site.stage.replicas(V1, 2)
    site.stage.endpoint(V1)
    site.stage.forget(V2)
    site.entrance.publish()
    assert site.result() == "1"
    return site


@pytest.fixture
def people(tmp_path: Path, shared_environments: Path) -> People:
    return People(tmp_path / "people", shared_environments)
