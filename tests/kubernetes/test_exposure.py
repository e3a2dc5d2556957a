"""How a cluster's gateway is reached: by node port, load balancer or Ingress, with and without TLS."""

from __future__ import annotations

import base64
import datetime
import http.client
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from kubernetes import client, config

from mlflow_domino.builder import builder_of
from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.data_planes.entrance import Entrance
from mlflow_domino.errors import DominoError, InvalidInput, Unavailable
from mlflow_domino.home import Home
from mlflow_domino.labels import GATEWAY, labels
from tests.conftest import eventually
from tests.kubernetes.conftest import REGISTRY


@pytest.fixture(scope="module")
def context() -> str:
    """One cluster is enough: neither has a load balancer, or a controller for Ingresses."""
    return "local"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    try:
        builder_of()
    except DominoError as error:
        pytest.skip(f"nothing builds images: {error}")
    home = Home(tmp_path_factory.mktemp("home"))
    home.ensure()
    return home


@pytest.fixture(autouse=True, scope="module")
def cleared(namespace: Cluster, home: Home) -> Iterator[None]:
    yield
    entrance(namespace, home).uninstall()


def entrance(cluster: Cluster, home: Home, **declared: Any) -> Entrance:
    return Entrance(cluster, Declaration("kube", kind="kubernetes", registry=REGISTRY, **declared), home)


def service(cluster: Cluster) -> dict[str, Any]:
    return cluster.get("Service", GATEWAY) or {}


def test_a_load_balancer_s_address_is_waited_for(namespace: Cluster, home: Home) -> None:
    balanced = entrance(namespace, home, expose="loadbalancer", port=80)
    said: list[str] = []
    with pytest.raises(Unavailable, match="not installed"):
        balanced.url()
    installing = threading.Thread(target=balanced.install, args=(said.append,))
    installing.start()
    eventually(lambda: service(namespace), within=120)
    with pytest.raises(Unavailable, match="no address yet"):
        entrance(namespace, home, expose="loadbalancer").url()
    _balance(namespace, {"ip": "192.0.2.7"})
    installing.join(300)
    assert balanced.url() == "http://192.0.2.7"
    assert said[-1].startswith("the gateway is at http://192.0.2.7; from here it cannot be reached: ")
    _balance(namespace, {"hostname": "lb.example.com"})
    assert entrance(namespace, home, expose="loadbalancer", port=8000).url() == "http://lb.example.com:8000"
    assert entrance(namespace, home, expose="loadbalancer", url="https://models.example.com/").url() == (
        "https://models.example.com"
    )


def _balance(cluster: Cluster, address: dict[str, str]) -> None:
    """Do what a cloud's load balancer does."""
    with client.ApiClient(config.new_client_from_config(context=cluster.context).configuration) as api:
        status = {"status": {"loadBalancer": {"ingress": [address]}}}
        client.CoreV1Api(api).patch_namespaced_service_status(GATEWAY, cluster.namespace, status)


def test_an_ingress_leads_to_the_gateway_which_has_no_port_of_the_nodes_then(namespace: Cluster, home: Home) -> None:
    by_host = entrance(namespace, home, expose="ingress", ingress_host="models.example.com")
    by_host.install()
    assert by_host.url() == "http://models.example.com"
    assert service(namespace)["spec"]["type"] == "ClusterIP"
    assert namespace.get("Ingress", GATEWAY)["spec"]["rules"][0]["host"] == "models.example.com"
    by_port = entrance(namespace, home)
    by_port.install()
    assert namespace.get("Ingress", GATEWAY) is None
    assert service(namespace)["spec"]["type"] == "NodePort"
    assert _get(by_port.url()) == 200


def test_a_certificate_from_a_secret_is_used_and_renewed_without_a_restart(
    namespace: Cluster, home: Home, tmp_path: Path
) -> None:
    first = _certificate(namespace, tmp_path)
    with_tls = entrance(namespace, home, tls_secret="certificate")
    with_tls.install()
    url = with_tls.url()
    assert url.startswith("https://")
    eventually(lambda: _answers(url, first))  # nodes may know the pod before for a moment
    found = namespace.list("Pod", labels("gateway"))
    (pod,) = (one["metadata"]["name"] for one in found if "deletionTimestamp" not in one["metadata"])
    second = _certificate(namespace, tmp_path)
    namespace.patch("Pod", pod, {"metadata": {"annotations": {"looked": "again"}}})  # or the kubelet takes a minute

    eventually(lambda: _answers(url, second), within=120, every=0.5)
    assert namespace.get("Pod", pod)["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_missing_certificate_is_named(namespace: Cluster, home: Home) -> None:
    with pytest.raises(InvalidInput, match=r"no Secret 'no-such-certificate'.*tls_secret"):
        entrance(namespace, home, tls_secret="no-such-certificate").install()


def _answers(url: str, authority: Path) -> bool:
    try:
        return _get(url, authority) == 200
    except ssl.SSLError:
        return False


def _get(url: str, authority: Path | None = None) -> int:
    parts = urllib.parse.urlsplit(url)
    if authority is None:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    else:
        context = ssl.create_default_context(cafile=str(authority))
        context.check_hostname = False
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=10, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def _certificate(cluster: Cluster, folder: Path) -> Path:
    """Put a new self-signed certificate into the Secret; return it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "gateway")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    data = {k: base64.b64encode(v).decode() for k, v in (("tls.crt", chain), ("tls.key", secret))}
    meta = {"name": "certificate"}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "type": "kubernetes.io/tls", "data": data})
    path = folder / f"{certificate.serial_number}.pem"
    path.write_bytes(chain)
    return path
