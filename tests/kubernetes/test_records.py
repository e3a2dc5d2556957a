from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlflow_domino import cluster_records
from mlflow_domino.cluster import Cluster
from mlflow_domino.cluster_records import KubernetesRecords
from mlflow_domino.config import Secrets, Settings
from mlflow_domino.errors import AlreadyExists, Conflict, DominoError, Forbidden, InvalidInput, Unsupported
from mlflow_domino.labels import ENDPOINT_NAME, MANAGED, labels, tokens_name
from mlflow_domino.models import Operation, new_id
from mlflow_domino.objects import SCHEMA_VERSION, endpoint_manifest, name_manifest
from mlflow_domino.store import Records
from tests.conftest import eventually
from tests.kubernetes.access import account
from tests.records import RecordsContract, a_token, a_version, an_endpoint

OURS = ("ConfigMap", "Secret", "Lease")
MAPS = "mlflow-domino/kind in (endpoint,version,name,operation)"


@pytest.fixture
def records(namespace: Cluster) -> Iterator[KubernetesRecords]:
    yield KubernetesRecords(namespace, "local")
    for kind in OURS:
        for one in namespace.list(kind, MANAGED):
            namespace.delete(kind, one["metadata"]["name"])


@pytest.fixture
def others(namespace: Cluster) -> Iterator[KubernetesRecords]:
    """The same namespace by a connection of its own."""
    cluster = Cluster(namespace.context, namespace.namespace)
    yield KubernetesRecords(cluster, "local")
    cluster.close()


def left(namespace: Cluster) -> list[str]:
    return [one["metadata"]["name"] for kind in OURS for one in namespace.list(kind, MANAGED)]


class TestKubernetesRecords(RecordsContract):
    pass


# ---- several people ------------------------------------------------------------------------------------------------


def test_whatever_each_calls_the_data_plane_they_see_the_same_endpoints(
    records: KubernetesRecords, namespace: Cluster
) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    other = KubernetesRecords(namespace, "prod-eu")
    seen = other.endpoints()
    assert seen == [dataclasses.replace(endpoint, data_plane="prod-eu")]
    other.save_endpoint(dataclasses.replace(seen[0], latest="a" * 24))
    assert records.endpoints()[0].data_plane == "local"
    assert records.endpoints()[0].latest == "a" * 24


def test_a_label_of_somebody_elses_is_no_conflict_and_stays(records: KubernetesRecords, namespace: Cluster) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    name = f"endpoint-{endpoint.id}"
    namespace.patch("ConfigMap", name, {"metadata": {"labels": {"team": "a"}, "annotations": {"example.com/x": "y"}}})
    records.save_endpoint(dataclasses.replace(endpoint, latest="a" * 24))
    kept = namespace.get("ConfigMap", name)
    assert kept is not None
    assert kept["metadata"]["labels"]["team"] == "a"
    assert kept["metadata"]["annotations"]["example.com/x"] == "y"


def test_a_change_by_hand_is_seen_and_is_a_conflict_for_who_read_before(
    records: KubernetesRecords, namespace: Cluster
) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    changed = dataclasses.replace(endpoint, settings=Settings(description="by hand"))
    text = endpoint_manifest(changed)["data"]["endpoint.json"]
    namespace.patch("ConfigMap", f"endpoint-{endpoint.id}", {"data": {"endpoint.json": text}})
    with pytest.raises(Conflict, match="Somebody else changed endpoint 'iris'"):
        records.save_endpoint(dataclasses.replace(endpoint, latest="a" * 24))
    assert records.endpoints()[0].settings.description == "by hand"


def test_objects_applied_by_hand_are_the_records_that_saving_makes(
    records: KubernetesRecords, namespace: Cluster
) -> None:
    endpoint = an_endpoint()
    version = a_version(endpoint)
    for manifest in records.manifests(endpoint, version):
        namespace.create(manifest)
    by_hand = {one["metadata"]["name"]: (one["metadata"]["labels"], one["data"]) for one in maps(namespace)}
    read = records.endpoints()[0], records.versions()[0]
    assert [dataclasses.replace(r, revision=0) for r in read] == [endpoint, version]
    with pytest.raises(AlreadyExists, match="iris"):
        records.save_endpoint(an_endpoint())
    records.remove_endpoint(endpoint.id)
    records.save_endpoint(endpoint)
    records.save_version(version)
    assert {one["metadata"]["name"]: (one["metadata"]["labels"], one["data"]) for one in maps(namespace)} == by_hand


def maps(namespace: Cluster) -> list[dict[str, Any]]:
    return namespace.list("ConfigMap", f"{MANAGED},{MAPS}")


# ---- what is killed half-way ---------------------------------------------------------------------------------------


def test_a_name_whose_endpoint_was_never_written_can_be_taken(records: KubernetesRecords, namespace: Cluster) -> None:
    namespace.create(name_manifest(an_endpoint(), taken=False))
    assert records.endpoints() == []
    endpoint = records.save_endpoint(an_endpoint())
    assert records.endpoints() == [endpoint]
    with pytest.raises(AlreadyExists):
        records.save_endpoint(an_endpoint())


def test_a_name_whose_endpoint_was_removed_half_way_can_be_taken(
    records: KubernetesRecords, namespace: Cluster
) -> None:
    gone = records.save_endpoint(an_endpoint())
    namespace.delete("ConfigMap", f"endpoint-{gone.id}")
    endpoint = records.save_endpoint(an_endpoint())
    assert records.endpoints() == [endpoint]


def test_an_endpoint_counts_that_was_written_before_its_name_was_confirmed(
    records: KubernetesRecords, namespace: Cluster
) -> None:
    endpoint = an_endpoint()
    namespace.create(name_manifest(endpoint, taken=False))
    namespace.create(endpoint_manifest(endpoint))
    assert [e.id for e in records.endpoints()] == [endpoint.id]
    with pytest.raises(AlreadyExists):
        records.save_endpoint(an_endpoint())
    records.remove_endpoint(endpoint.id)
    assert left(namespace) == []


def test_of_two_endpoints_with_one_name_the_one_that_has_the_name_counts(
    records: KubernetesRecords, namespace: Cluster
) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    namespace.create(endpoint_manifest(an_endpoint()))  # of a command killed before it saw that it was too late
    assert records.endpoints() == [endpoint]


def test_removing_goes_on_where_it_was_interrupted(records: KubernetesRecords, namespace: Cluster) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    version = records.save_version(a_version(endpoint))
    records.save_secrets(endpoint, Secrets({"A": "1"}))
    records.save_secrets(version, Secrets({"A": "1"}))
    records.save_secrets(a_version(endpoint, 2), Secrets({"A": "1"}))  # whose version was never recorded
    records.save_token(a_token(endpoint))
    records.save_operation(Operation(endpoint.id, "delete", "begun", 1, 1))
    namespace.delete("ConfigMap", f"version-{version.id}")
    namespace.delete("Secret", tokens_name(endpoint.id))
    records.remove_endpoint(endpoint.id)
    assert left(namespace) == []


def test_names_and_locks_of_killed_commands_go_and_those_of_others_stay(
    records: KubernetesRecords, others: Records, namespace: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    namespace.create(name_manifest(an_endpoint("mine"), taken=False))
    a_lease(namespace, "old", "2020-01-01T00:00:00.000000Z")
    a_lease(namespace, "fresh", "2099-01-01T00:00:00.000000Z")
    with others.lock(endpoint.id):
        records.tidy()
        assert len(maps(namespace)) == 3, "an endpoint may be about to be made"
        monkeypatch.setattr(cluster_records, "_RESERVED_S", -2)
        records.tidy()
        assert {one["metadata"]["annotations"][ENDPOINT_NAME] for one in maps(namespace)} == {"iris"}
        locks = [one["metadata"]["name"] for one in namespace.list("Lease", MANAGED)]
        assert locks == sorted([f"lock-{endpoint.id}", "lock-fresh"])


def test_an_endpoint_that_cannot_be_written_leaves_no_name(records: KubernetesRecords, namespace: Cluster) -> None:
    first = records.save_endpoint(an_endpoint())
    with pytest.raises(AlreadyExists):
        records.save_endpoint(dataclasses.replace(first, name="other", revision=0))
    assert records.endpoints() == [first]
    assert len(maps(namespace)) == 2


# ---- what is in the objects ----------------------------------------------------------------------------------------


def test_secrets_are_in_secrets_only(records: KubernetesRecords, namespace: Cluster) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    version = records.save_version(a_version(endpoint))
    records.save_secrets(version, Secrets({"NAME": "hunter2"}, "https://u:hunter2@index.example/simple"))
    records.save_operation(Operation(endpoint.id, "update", "begun", 1, 1))
    assert "hunter2" not in json.dumps(namespace.list("ConfigMap"))
    found = namespace.get("Secret", f"version-{version.id}-secrets")
    assert found is not None
    assert b"hunter2" in base64.b64decode(found["data"]["secrets.json"])
    records.remove_version(version.id)
    assert namespace.get("Secret", f"version-{version.id}-secrets") is None


def test_what_pods_read_of_tokens_stays_when_records_of_tokens_change(
    records: KubernetesRecords, namespace: Cluster
) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    token = a_token(endpoint)
    records.save_token(token)
    namespace.patch("Secret", tokens_name(endpoint.id), {"stringData": {"tokens.json": "{}"}})
    records.save_token(a_token(endpoint, "second"))
    records.remove_token(token.id)
    found = namespace.get("Secret", tokens_name(endpoint.id))
    assert found is not None
    assert base64.b64decode(found["data"]["tokens.json"]) == b"{}"
    assert [t.name for t in records.tokens(endpoint.id)] == ["second"]


def test_a_record_that_is_too_large_is_refused_with_its_size(records: KubernetesRecords) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    large = Settings(exclude_files=tuple(f"{n}" * 200 for n in range(1000, 2200)))
    with pytest.raises(InvalidInput, match=r"would have \d+ KiB; a cluster's objects hold 900 KiB"):
        records.save_endpoint(dataclasses.replace(endpoint, settings=large))
    with pytest.raises(InvalidInput, match="900 KiB"):
        records.save_secrets(endpoint, Secrets({f"V{n}": "x" * 65536 for n in range(12)}))
    assert records.endpoints() == [endpoint]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"settings": {}}'])
def test_a_damaged_record_is_named(records: KubernetesRecords, namespace: Cluster, text: str) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    name = f"endpoint-{endpoint.id}"
    namespace.patch("ConfigMap", name, {"data": {"endpoint.json": text}})
    with pytest.raises(
        DominoError, match=f"ConfigMap '{name}' in namespace .* cannot be used: a record in it is damaged"
    ):
        records.endpoints()


def test_a_damaged_secret_is_named_and_not_shown(records: KubernetesRecords, namespace: Cluster) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    records.save_secrets(endpoint, Secrets({"A": "1"}))
    namespace.patch("Secret", f"endpoint-{endpoint.id}-secrets", {"stringData": {"secrets.json": '{"hunter2": '}})
    with pytest.raises(DominoError, match=f"Secret 'endpoint-{endpoint.id}-secrets'") as caught:
        records.secrets(endpoint)
    assert "hunter2" not in str(caught.value)


def test_a_record_copied_to_another_name_is_not_taken_for_one(records: KubernetesRecords, namespace: Cluster) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    copy = endpoint_manifest(endpoint)
    namespace.create({**copy, "metadata": {**copy["metadata"], "name": f"endpoint-{new_id()}"}})
    with pytest.raises(DominoError, match="another one's record"):
        records.endpoints()


def test_an_older_release_refuses_records_of_a_newer_one(records: KubernetesRecords, namespace: Cluster) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    namespace.patch("ConfigMap", f"endpoint-{endpoint.id}", {"data": {"schema": str(SCHEMA_VERSION + 1)}})
    with pytest.raises(Unsupported, match="newer release"):
        records.endpoints()


def test_fields_that_another_release_wrote_do_not_disturb(records: KubernetesRecords, namespace: Cluster) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    document = json.loads(endpoint_manifest(endpoint)["data"]["endpoint.json"])
    document["settings"]["later"] = document["later"] = 1
    namespace.patch("ConfigMap", f"endpoint-{endpoint.id}", {"data": {"endpoint.json": json.dumps(document)}})
    assert dataclasses.replace(records.endpoints()[0], revision=endpoint.revision) == endpoint


def test_a_list_of_records_is_one_request_however_many_there_are(
    records: KubernetesRecords, namespace: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        endpoint = records.save_endpoint(an_endpoint(f"e{number}"))
        records.save_version(a_version(endpoint))
        records.save_operation(Operation(endpoint.id, "update", "begun", 1, 1))
    sent: list[str] = []
    attempt = namespace._transport.attempt

    def counted(call: Any, method: str, path: str, **more: Any) -> Any:
        sent.append(path)
        return attempt(call, method, path, **more)

    monkeypatch.setattr(namespace._transport, "attempt", counted)
    for read in (records.endpoints, records.versions, records.operations):
        sent.clear()
        assert len(read()) == 3
        assert len(sent) == 1


# ---- rights --------------------------------------------------------------------------------------------------------


def test_a_right_that_is_missing_is_named_with_its_verb_and_resource(
    records: KubernetesRecords, namespace: Cluster, tmp_path: Path
) -> None:
    reading: list[dict[str, list[str]]] = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}]
    reader = account(namespace, tmp_path, "reader", reading)
    limited = KubernetesRecords(reader, "local")
    endpoint = records.save_endpoint(an_endpoint())
    eventually(lambda: reader.may("list", "ConfigMap"))
    assert limited.endpoints() == [endpoint]
    with pytest.raises(Forbidden, match=r"no right to update configmaps in the namespace .*verbs \['update'\]"):
        limited.save_endpoint(dataclasses.replace(endpoint, latest="a" * 24))
    with pytest.raises(Forbidden, match="no right to get secrets"):
        limited.tokens(endpoint.id)
    with (
        pytest.raises(Forbidden, match=r"create leases .*apiGroups \['coordination.k8s.io'\]"),
        limited.lock(endpoint.id, wait=False),
    ):
        pass
    assert not reader.may("create", "Secret")
    assert records.endpoints() == [endpoint]
    reader.close()


# ---- locks ---------------------------------------------------------------------------------------------------------


def a_lease(namespace: Cluster, name: str, renewed: str, **spec: Any) -> None:
    """Make the Lease of somebody who is not there."""
    namespace.create(
        {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": f"lock-{name}", "labels": labels("lock")},
            "spec": {"holderIdentity": "another", "leaseDurationSeconds": 15, "renewTime": renewed, **spec},
        }
    )


@pytest.mark.parametrize("wait", [False, True])
def test_a_lock_that_was_not_renewed_in_time_is_taken_over(records: Records, namespace: Cluster, wait: bool) -> None:
    a_lease(namespace, "a", "2020-01-01T00:00:00.000000Z")
    with records.lock("a", wait=wait):
        held = namespace.get("Lease", "lock-a")
        assert held is not None
        assert held["spec"]["holderIdentity"] != "another"
    assert namespace.get("Lease", "lock-a") is None


def test_a_lock_that_says_to_have_no_holder_is_free(records: Records, namespace: Cluster) -> None:
    a_lease(namespace, "a", "2099-01-01T00:00:00.000000Z", holderIdentity="")
    with records.lock("a", wait=False):
        pass


def test_a_lock_whose_times_are_nonsense_is_free_when_it_has_not_changed_for_long(
    records: Records, namespace: Cluster
) -> None:
    a_lease(namespace, "a", "2099-01-01T00:00:00.000000Z", leaseDurationSeconds=1)
    with pytest.raises(Conflict), records.lock("a", wait=False):
        pass
    with records.lock("a"):
        pass


def test_a_fresh_lock_of_somebody_else_is_not_forgotten(records: Records, namespace: Cluster) -> None:
    a_lease(namespace, "fresh", "2099-01-01T00:00:00.000000Z")
    a_lease(namespace, "old", "2020-01-01T00:00:00.000000Z")
    for name in ("fresh", "old"):
        records.forget_lock(name)
    assert left(namespace) == ["lock-fresh"]


@pytest.mark.parametrize("how", ["removed", "taken"])
def test_who_lost_a_lock_writes_no_record_any_more(records: KubernetesRecords, namespace: Cluster, how: str) -> None:
    endpoint = records.save_endpoint(an_endpoint())
    name = f"lock-{endpoint.id}"
    with records.lock(endpoint.id) as lease:
        if how == "removed":
            namespace.delete("Lease", name)
        else:
            namespace.patch("Lease", name, {"spec": {"holderIdentity": "another"}})
        eventually(lambda: lease.lost, within=20)
        for write in (
            lambda: records.save_endpoint(dataclasses.replace(endpoint, latest="a" * 24)),
            lambda: records.save_version(a_version(endpoint)),
            lambda: records.save_operation(Operation(endpoint.id, "update", "begun", 1, 1)),
            lambda: records.remove_endpoint(endpoint.id),
            lambda: records.save_token(a_token(endpoint)),
            lambda: records.save_secrets(endpoint, Secrets({"A": "1"})),
        ):
            with pytest.raises(Conflict, match="was lost"):
                write()
    assert (namespace.get("Lease", name) is None) == (how == "removed")  # another one's stays
    assert records.endpoints() == [endpoint]


def test_a_lock_that_wears_a_new_label_is_still_held(records: KubernetesRecords, namespace: Cluster) -> None:
    with records.lock("a") as lease:
        namespace.patch("Lease", "lock-a", {"metadata": {"labels": {"team": "a"}}})
        before = namespace.get("Lease", "lock-a")
        assert before is not None
        eventually(lambda: (namespace.get("Lease", "lock-a") or before)["spec"] != before["spec"], within=20)
        assert not lease.lost
    assert namespace.get("Lease", "lock-a") is None


HOLDER = """
import sys, time
from mlflow_domino.cluster import Cluster
from mlflow_domino.cluster_records import KubernetesRecords
with KubernetesRecords(Cluster(sys.argv[1], sys.argv[2]), "local").lock("a"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_goes_with_a_command_that_is_interrupted(records: Records, namespace: Cluster) -> None:
    holder = a_holder(namespace)
    with pytest.raises(Conflict), records.lock("a", wait=False):
        pass
    holder.send_signal(signal.SIGINT)
    holder.communicate()
    with records.lock("a", wait=False):
        pass


def test_a_lock_of_a_command_of_this_machine_that_was_killed_is_free_at_once(
    records: Records, namespace: Cluster
) -> None:
    holder = a_holder(namespace)
    with pytest.raises(Conflict), records.lock("a", wait=False):
        pass
    holder.kill()
    holder.communicate()
    with records.lock("a", wait=False):
        pass


def a_holder(namespace: Cluster) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, namespace.context, namespace.namespace]
    holder = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=dict(os.environ)
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


# ---- several clusters ----------------------------------------------------------------------------------------------


def test_two_clusters_at_once_keep_records_of_their_own(records: KubernetesRecords, elsewhere: Cluster) -> None:
    there = KubernetesRecords(elsewhere, "remote")
    here, other = records.save_endpoint(an_endpoint()), there.save_endpoint(an_endpoint())
    assert records.endpoints() == [here]
    assert there.endpoints() == [dataclasses.replace(other, data_plane="remote")]
    with records.lock("a"), there.lock("a", wait=False):
        pass
