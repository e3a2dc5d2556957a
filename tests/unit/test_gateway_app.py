from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from mlflow_domino.errors import GatewayFailed, InvalidInput
from mlflow_domino.gateway.app import create_app
from mlflow_domino.gateway.inventory import (
    Certificate,
    Inventory,
    Replica,
    ensure_token,
    read_inventory,
    write_inventory,
)
from mlflow_domino.gateway.metrics import Exposition, by_endpoint
from tests.certificates import certificate
from tests.conftest import eventually

E = "e" * 24


@pytest.fixture
def client(tmp_path: Path) -> FlaskClient:
    write_inventory(tmp_path / "gateway.json", Inventory(str(tmp_path / "admin"), str(tmp_path / "token")))
    return create_app(tmp_path / "gateway.json").test_client()


def test_an_inventory_is_read_as_it_was_written(tmp_path: Path) -> None:
    replica = Replica(E, 3, 1, "/run/s/x", "/home/token")
    written = Inventory("/run/admin", "/run/token", (replica,), Certificate("/run/c", "/etc/chain", "/etc/key"))
    write_inventory(tmp_path / "gateway.json", written)
    assert read_inventory(tmp_path / "gateway.json") == written
    assert (tmp_path / "gateway.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"admin": 1', '{"admin":"a","management_token":"b","certificate":null,"replicas":[{}]}'],
)
def test_an_inventory_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "gateway.json").write_text(content)
    with pytest.raises(GatewayFailed, match=r"gateway\.json"):
        read_inventory(tmp_path / "gateway.json")


def test_an_inventory_holds_ids_and_addresses_only() -> None:
    with pytest.raises(InvalidInput):
        Replica('e"} 1', 1, 0, "/run/s/x", "/token")
    with pytest.raises(InvalidInput):
        Replica(E, 1, 0, "relative", "/token")


def test_a_management_token_is_made_once_and_closed_to_others(tmp_path: Path) -> None:
    token = ensure_token(tmp_path / "token")
    assert len(token) == 64
    assert ensure_token(tmp_path / "token") == token
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_without_a_management_token_nobody_sees_metrics(client: FlaskClient, tmp_path: Path) -> None:
    assert client.get("/metrics", headers={"Authorization": "Bearer "}).status_code == 401
    (tmp_path / "token").write_text("")
    for header in ("", "Bearer", "Bearer ", "Basic Og=="):
        assert client.get("/metrics", headers={"Authorization": header}).status_code == 401


def test_bearer_and_basic_both_carry_the_management_token(client: FlaskClient, tmp_path: Path) -> None:
    token = ensure_token(tmp_path / "token")
    assert client.get("/metrics", headers={"Authorization": f"bearer {token}"}).status_code == 200
    assert client.get("/metrics", auth=(token, token)).status_code == 200
    assert client.get("/metrics", auth=(token, "other")).status_code == 401
    assert client.get("/metrics", headers={"Authorization": "Bearer \xe9"}).status_code == 401


def test_a_broken_inventory_is_a_500_without_its_path(client: FlaskClient, tmp_path: Path) -> None:
    (tmp_path / "gateway.json").unlink()
    answer = client.get("/metrics")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (500, "GATEWAY_ERROR")
    assert str(tmp_path) not in answer.text


def test_errors_carry_the_request_id_of_the_gateway(client: FlaskClient) -> None:
    answer = client.get("/models/x/latest/model", headers={"X-Request-Id": "1234567890123456"})
    assert answer.status_code == 404
    assert answer.get_json()["error"]["request_id"] == "1234567890123456"


def test_the_application_does_not_import_mlflow() -> None:
    code = "import sys, mlflow_domino.gateway.serve; sys.exit(any(m in sys.modules for m in ('mlflow', 'sqlalchemy', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_samples_of_many_replicas_share_one_description() -> None:
    text = '# HELP h Help.\n# TYPE h histogram\nh_bucket{le="1"} 2\nh_sum 0.5\n\nlone 1\n'
    exposition = Exposition()
    for replica in "01":
        exposition.add(text, {"replica": replica})
    assert exposition.text().splitlines() == [
        "# HELP h Help.",
        "# TYPE h histogram",
        'h_bucket{replica="0",le="1"} 2',
        'h_sum{replica="0"} 0.5',
        'h_bucket{replica="1",le="1"} 2',
        'h_sum{replica="1"} 0.5',
        'lone{replica="0"} 1',
        'lone{replica="1"} 1',
    ]


def test_a_label_that_is_there_already_is_kept_under_another_name() -> None:
    exposition = Exposition()
    exposition.add('m{version="x",a="}\\"{"} 1 1700000000', {"version": "3"})
    assert exposition.text() == 'm{version="3",exported_version="x",a="}\\"{"} 1 1700000000\n'


def test_envoys_routes_are_shown_as_endpoint_and_route() -> None:
    text = f'm{{envoy_virtual_host="models",envoy_route="{E}_labels_prod"}} 1\nn{{envoy_route="other"}} 2'
    assert by_endpoint(text) == f'm{{endpoint="{E}",route="labels/prod"}} 1\nn{{envoy_route="other"}} 2'


def test_certificates_are_watched_on_after_a_folder_could_not_be_written(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.write_text("no folder")
    chain, key = certificate(tmp_path, "renewed")
    inventory = Inventory("/run/admin", "/run/token", (), Certificate(str(run / "c"), str(chain), str(key)))
    write_inventory(tmp_path / "gateway.json", inventory)
    program = (
        "import sys; from pathlib import Path; from mlflow_domino.gateway.app import watch_certificate as watch\n"
        "watch(Path(sys.argv[1]), report=lambda reason: print(reason, flush=True), period_s=0.05).join()"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "gateway.json")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as watching:
        try:
            assert watching.stdout is not None
            assert str(run) in watching.stdout.readline()
            run.unlink()
            run.mkdir()
            eventually((run / "c").exists)
        finally:
            watching.kill()
