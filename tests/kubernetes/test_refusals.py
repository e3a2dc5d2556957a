"""What a cluster, a registry, an environment or somebody else refuses: each is said with its way out, and leaves nothing."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_domino.builder import builder_of
from mlflow_domino.check import Finding, Verdict, findings
from mlflow_domino.cluster import Cluster
from mlflow_domino.cluster_records import KubernetesRecords
from mlflow_domino.controller import Controller
from mlflow_domino.data_planes.declaration import Declaration, declared
from mlflow_domino.data_planes.rights import DEPLOY, Right, to_install
from mlflow_domino.errors import (
    AlreadyExists,
    Conflict,
    DominoError,
    EnvironmentFailed,
    Failed,
    Forbidden,
    InvalidInput,
    NotFound,
)
from mlflow_domino.home import Home
from mlflow_domino.labels import GATEWAY
from mlflow_domino.models import Operation
from tests.conftest import eventually
from tests.contract import ImagesOf
from tests.deployment import ECHO, Deployment
from tests.images import BASE, Made, installed
from tests.kubernetes.access import account
from tests.kubernetes.conftest import a_namespace, objects_of
from tests.kubernetes.people import People, at
from tests.records import an_endpoint
from tests.registry import registry


@pytest.fixture(scope="module")
def context() -> str:
    """One cluster is enough: what differs between two is where they are."""
    return "local"


@pytest.fixture
def empty() -> Iterator[Cluster]:
    """A namespace without a gateway."""
    with a_namespace("local") as inside:
        yield inside


@pytest.fixture
def image() -> Iterator[Made]:
    made = Made(builder_of())
    yield made
    made.clean()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[str]:
    """A registry that takes nothing from us; no image that was meant for it is left."""
    with registry(tmp_path / "registry", closed=True) as one:
        yield one.host
    builder = builder_of()
    for kind in ("gateway", "endpoint"):
        for image in builder.images(f"{one.host}/mlflow-domino-{kind}"):
            for name in image.names:
                if name.startswith(one.host):
                    builder.remove_image(name)


@pytest.fixture
def homes(people: People) -> Callable[..., Home]:
    """Make homes that declare a data plane `kube`."""
    return lambda **declared: people.home(kube=declared)


def refused(home: Home, kind: type[DominoError], words: str, folder: Path) -> None:
    deployment = Deployment(home, "domino:/kube")
    with pytest.raises(kind, match=words):
        deployment.create("refused", deployment.project(folder, ECHO, VALUE=1))


def found_by_check(home: Home, what: str) -> Finding:
    return next(f for f in findings(home, declared("domino:/kube", home)) if f.what == what)


# ---- environments and registries -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "settings", "words"),
    [
        (f"FROM {BASE}\n{installed('six==1.16.0')}", {"install_harness_packages": "false"}, "lacks uWSGI, Flask, Prometheus"),
        (f"FROM {BASE}\nUSER 1000", {}, r"no user with uid and gid 12574.*USER root"),
        ("FROM scratch\nCOPY file /file", {}, "has no Python"),
    ],
    ids=["without packages", "without the user", "without Python"],
)  # fmt: skip
def test_an_environment_that_cannot_serve_is_refused_with_what_it_lacks(
    deployment: Deployment, namespace: Cluster, image: Made, tmp_path: Path, recipe: str, settings: dict[str, str], words: str
) -> None:  # fmt: skip
    deployment.controller.up()
    before = running(namespace)
    own = image("refused", recipe, file="x")
    with pytest.raises(EnvironmentFailed, match=words):
        deployment.create("refused", deployment.project(tmp_path, ECHO, VALUE=1), environment=own, **settings)
    assert running(namespace) == before
    assert deployment.controller.endpoint("refused").status.value == "Failed"


def running(cluster: Cluster) -> list[str]:
    return [o["metadata"]["name"] for kind in ("Deployment", "Service") for o in cluster.list(kind)]


def test_a_registry_that_refuses_the_push_is_named_with_the_way_to_sign_in(
    deployment: Deployment, namespace: Cluster, homes: Callable[..., Home], closed: str, tmp_path: Path
) -> None:
    deployment.controller.up()
    before = running(namespace)
    home = homes(**at(namespace), registry=closed)
    refused(home, Failed, rf"{closed} refuses the push.*docker login {closed}", tmp_path / "p")
    assert running(namespace) == before
    images = ImagesOf(home, builder_of())
    assert images()
    Controller.open("domino:/kube", home=home).delete("refused")
    assert not images()


def test_a_first_create_whose_registry_refuses_the_gateway_leaves_nothing(
    empty: Cluster, homes: Callable[..., Home], closed: str, tmp_path: Path
) -> None:
    before = objects_of(empty)
    refused(homes(**at(empty), registry=closed), Failed, "refuses the push", tmp_path / "p")
    assert objects_of(empty) == before


# ---- the cluster -----------------------------------------------------------------------------------------------------


def test_a_wrong_context_and_a_namespace_that_is_not_there_are_named(
    homes: Callable[..., Home], namespace: Cluster, tmp_path: Path
) -> None:
    refused(homes(context="nowhere"), DominoError, "No context 'nowhere'.*local.*Set `context`", tmp_path / "1")
    absent = homes(context=namespace.context, namespace="test-absent")
    refused(absent, NotFound, "kubectl create namespace test-absent", tmp_path / "2")
    assert found_by_check(absent, "Namespace").way_out == "kubectl create namespace test-absent"


def rules_of(*rights: Right) -> list[dict[str, list[str]]]:
    return [right.rule() for right in rights]


def with_rights(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch, *rights: Right) -> dict[str, str]:
    """Be somebody who has some rights only; return the declaration's keys."""
    someone = account(cluster, folder, "someone", rules_of(*rights))
    monkeypatch.setenv("KUBECONFIG", str(someone._transport._wanted[2]))
    someone.close()
    return {"context": "own", "namespace": cluster.namespace}


def test_whoever_lacks_rights_is_told_all_of_them_before_anything_is_made(
    empty: Cluster, homes: Callable[..., Home], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = Cluster("local", empty.namespace, kubeconfig=None)
    admin.version()
    reading = [Right(r.kind, ("get", "list"), r.part) for r in DEPLOY]
    home = homes(**with_rights(empty, tmp_path, monkeypatch, *reading))
    before = objects_of(admin)
    refused(home, Forbidden, "create, update, delete ConfigMap; .* Deployment; .*gateway install", tmp_path / "p")
    assert objects_of(admin) == before
    assert "create, update, delete ConfigMap" in found_by_check(home, "Rights").found
    gateway = found_by_check(home, "Gateway")
    assert gateway.verdict is Verdict.MISSING
    assert "gateway install" in gateway.way_out


def test_whoever_may_only_look_sees_what_somebody_else_is_changing(
    empty: Cluster, homes: Callable[..., Home], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = KubernetesRecords(empty, "kube")
    endpoint = records.save_endpoint(an_endpoint("seen"))
    records.save_operation(Operation(endpoint.id, "update", "begun", 1, 1))
    looking = [Right(r.kind, ("get", "list"), r.part) for r in DEPLOY if r.kind != "Lease"]
    home = homes(**with_rights(empty, tmp_path, monkeypatch, *looking))
    (view,) = Controller.open("domino:/kube", home=home).endpoints()
    assert (view.endpoint.name, view.pending) == ("seen", "update")


def test_the_rights_that_check_names_are_enough(
    empty: Cluster, homes: Callable[..., Home], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes(**with_rights(empty, tmp_path, monkeypatch, *DEPLOY, *to_install(Declaration("kube"))))
    deployment = Deployment(home, "domino:/kube")
    view = deployment.create("mine", deployment.project(tmp_path / "1", ECHO, VALUE=1), **{"env.A": "b"})
    assert deployment.call(view, {"data": {}}).json()["result"] == 1
    deployment.update("mine", deployment.project(tmp_path / "2", ECHO, VALUE=2))
    deployment.update("mine", replicas=2)
    deployment.controller.rollback("mine")
    deployment.controller.create_token("mine", "second")
    deployment.controller.revoke_token("mine", "second")
    assert deployment.controller.plane.logs(deployment.controller.find_version("mine"))
    found = {f.what: f.verdict for f in findings(home, declared("domino:/kube", home))}
    assert found["Rights"] is found["Gateway"] is found["Namespace"] is Verdict.OK
    deployment.clean()
    deployment.controller.down()


def test_a_quota_on_services_leaves_nothing_of_the_endpoint(
    deployment: Deployment, namespace: Cluster, tmp_path: Path
) -> None:
    deployment.controller.up()
    before = objects_of(namespace)
    meta = {"name": "one"}
    hard = {"count/deployments.apps": "1"}  # the gateway's
    namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": meta, "spec": {"hard": hard}})
    try:
        quota_used(namespace)
        with pytest.raises(Forbidden, match=r"exceeded quota: one.*have an administrator raise the quota"):
            deployment.create("refused", deployment.project(tmp_path, ECHO, VALUE=1))
    finally:
        namespace.delete("ResourceQuota", "one")
    assert objects_of(namespace) == before


def quota_used(namespace: Cluster) -> None:
    eventually(lambda: (namespace.get("ResourceQuota", "one") or {}).get("status", {}).get("used"), within=30)


def test_a_node_port_that_is_taken_is_refused_and_leaves_nothing_of_the_gateway(
    empty: Cluster, namespace: Cluster, deployment: Deployment, homes: Callable[..., Home], tmp_path: Path
) -> None:
    deployment.controller.up()
    service = namespace.get("Service", GATEWAY)
    assert service
    port = service["spec"]["ports"][0]["nodePort"]
    before = objects_of(empty)
    refused(homes(**at(empty), node_port=port), InvalidInput, f"node port {port} is taken.*node_port", tmp_path / "p")
    assert objects_of(empty) == before
    refused(homes(**at(empty), node_port=81), InvalidInput, "not in the valid range", tmp_path / "p")
    assert objects_of(empty) == before


# ---- somebody else ---------------------------------------------------------------------------------------------------


def test_of_two_people_who_take_a_name_at_the_same_moment_exactly_one_has_it(
    deployment: Deployment, namespace: Cluster, homes: Callable[..., Home], tmp_path: Path
) -> None:
    deployment.controller.up()
    people = [Deployment(homes(**at(namespace)), "domino:/kube") for _ in range(2)]
    outcomes: list[Any] = [None, None]
    together = threading.Barrier(2)

    def create(number: int) -> None:
        project = people[number].project(tmp_path / f"p{number}", ECHO, VALUE=number)
        together.wait()
        try:
            outcomes[number] = people[number].create("wanted", project)
        except DominoError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=create, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lost = [o for o in outcomes if isinstance(o, DominoError)]
    assert len(lost) == 1, outcomes
    assert isinstance(lost[0], AlreadyExists | Conflict)
    winner = next(n for n in range(2) if outcomes[n] is not lost[0])
    (view,) = people[1 - winner].controller.endpoints()
    assert view.endpoint.id == outcomes[winner].endpoint.id
    assert people[winner].call(view, {"data": {}}).json()["result"] == winner
    assert len(deployment.controller.records.versions()) == 1
    people[1 - winner].controller.delete("wanted")
    assert not deployment.controller.endpoints()
    with contextlib.suppress(NotFound):
        deployment.controller.endpoint("wanted")
