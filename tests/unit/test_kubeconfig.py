from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlflow_domino.cluster import Cluster
from mlflow_domino.errors import DominoError, InvalidInput


def a_file(path: Path, *names: str, current: str = "", namespace: str = "", host: str = "example.com") -> str:
    document: dict[str, Any] = {
        "contexts": [{"name": n, "context": {"cluster": n, "user": n, "namespace": namespace}} for n in names],
        "clusters": [{"name": n, "cluster": {"server": f"https://{n}.{host}:6443/"}} for n in names],
        "users": [{"name": n, "user": {"token": "hunter2"}} for n in names],
    }
    if current:
        document["current-context"] = current
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_nothing_is_read_before_it_is_needed() -> None:
    Cluster("no such context", kubeconfig="/no/such/file")


def test_a_context_has_its_server_and_its_namespace(tmp_path: Path) -> None:
    path = a_file(tmp_path / "a", "one", "two", current="two", namespace="team")
    assert str(Cluster("one", kubeconfig=path)) == "the cluster 'one' (https://one.example.com:6443)"
    assert Cluster("one", kubeconfig=path).namespace == "team"
    assert Cluster("one", "mine", kubeconfig=path).namespace == "mine"
    assert Cluster(kubeconfig=path).context == "two"


def test_a_context_without_a_namespace_means_default(tmp_path: Path) -> None:
    assert Cluster(kubeconfig=a_file(tmp_path / "a", "one", current="one")).namespace == "default"


def test_of_several_files_the_first_that_says_something_counts_as_for_kubectl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = a_file(tmp_path / "a", "both", "one", host="first.example.com")
    second = a_file(tmp_path / "b", "both", "two", current="two", host="second.example.com")
    third = a_file(tmp_path / "c", "three", current="three")
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join([first, str(tmp_path / "none"), second, "", third]))
    assert Cluster().context == "two"
    assert Cluster("both").server == "https://both.first.example.com:6443"
    assert Cluster("three").server == "https://three.example.com:6443"


def test_a_context_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = a_file(tmp_path / "a", "one", "two")
    with pytest.raises(InvalidInput, match=r"No context 'prod' in the kubeconfig \(.*a\); there are: one, two"):
        Cluster("prod", kubeconfig=path).get("ConfigMap", "a")
    with pytest.raises(InvalidInput, match="current context 'gone' is not in it"):
        _ = Cluster(kubeconfig=a_file(tmp_path / "b", "one", current="gone")).server


def test_a_machine_without_any_cluster_is_told_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(InvalidInput, match=r"No Kubernetes cluster is configured.*KUBECONFIG"):
        _ = Cluster().server
    with pytest.raises(InvalidInput, match=r"No context 'prod'.*no file that exists"):
        _ = Cluster("prod").server


@pytest.mark.parametrize(
    "text", ["token: hunter2\n\tx", "- hunter2", "", "contexts: [hunter2]", "contexts: [{context: 1}]", "\0"]
)
def test_a_file_that_is_no_kubeconfig_is_named_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "broken").write_text(text)
    with pytest.raises(InvalidInput, match="broken") as caught:
        _ = Cluster("one", kubeconfig=str(tmp_path / "broken")).server
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("missing", ["clusters", "users"])
def test_a_context_that_leads_nowhere_is_named(tmp_path: Path, missing: str) -> None:
    path = Path(a_file(tmp_path / "a", "one", current="one"))
    document = yaml.safe_load(path.read_text())
    document[missing] = []
    path.write_text(yaml.safe_dump(document))
    if missing == "users":  # anonymous, which a server may refuse
        assert Cluster(kubeconfig=str(path)).server
    else:
        with pytest.raises(DominoError, match="context 'one' of the kubeconfig cannot be used"):
            _ = Cluster(kubeconfig=str(path)).server
