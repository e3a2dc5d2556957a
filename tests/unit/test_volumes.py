from __future__ import annotations

from typing import Any

import pytest

from mlflow_domino.config import Settings, parse, settings_from_json, settings_to_json
from mlflow_domino.errors import InvalidInput
from mlflow_domino.volumes import Volume

DATA = Volume("data", "/data", "/srv/data")


@pytest.mark.parametrize(
    "value",
    [
        '[{"name": "data", "mountPath": "/data", "path": "/srv/data", "readOnly": true}]',
        "[{name: data, mount_path: /data, path: /srv/data, read_only: 'true'}]",
        "- name: data\n  mountPath: /data\n  path: /srv/data",
        '{"name": "data", "mountPath": "/data/", "path": "//srv//data", "volumeType": "HostPath"}',
        [{"name": "data", "mount_path": "/data", "path": "/srv/data"}],
        ({"name": "data", "mountPath": "/data", "path": "/srv/data", "readOnly": True},),
    ],
)
def test_a_volume_means_the_same_however_it_is_written(value: Any) -> None:
    assert parse({"volumes": value})[0].volumes == (DATA,)


def test_a_volume_can_be_written_to_only_where_that_is_said() -> None:
    given = {"name": "data", "mountPath": "/data", "path": "/srv/data", "readOnly": False}
    assert not parse({"volumes": [given]})[0].volumes[0].read_only
    assert parse({"volumes": "[]"}, base=Settings(volumes=(DATA,)))[0].volumes == ()


def volume(**changes: Any) -> dict[str, Any]:
    given = {"name": "data", "mountPath": "/data", "path": "/srv/data", **changes}
    return {key: value for key, value in given.items() if value is not None}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("data:/data", "a list such as"),
        ("[", "a list such as"),
        (7, "a list such as"),
        ([volume(name="Data")], "not 'Data'"),
        ([volume(name="domino-tokens")], "not 'domino-tokens'"),
        ([volume(name=None)], "not None"),
        ([volume(path=None)], "volume 'data': path is an absolute path"),
        ([volume(path="srv/data")], "volume 'data': path is an absolute path"),
        ([volume(path="/srv/../etc")], "volume 'data': path is an absolute path"),
        ([volume(path="/srv:/data")], "volume 'data': path is an absolute path"),
        ([volume(mountPath=7)], "volume 'data': mount_path is an absolute path"),
        ([volume(mountPath="/")], "/ is the replica's own"),
        ([volume(mountPath="/opt/domino/environment")], "is the replica's own"),
        ([volume(mountPath="/run/domino/tokens")], "is the replica's own"),
        ([volume(mountPath="/proc/1")], "is the replica's own"),
        ([volume(readOnly="perhaps")], "true or false"),
        ([volume(volumeType="nfs")], "only hostPath volumes are supported, not 'nfs'"),
        ([volume(claimName="mine")], "only hostPath volumes are supported, with the keys name, mountPath, path"),
        ([volume(), volume(mountPath="/other")], "two volumes have the name data"),
        ([volume(), volume(name="other")], "two volumes have the mount path /data"),
    ],
)
def test_a_wrong_volume_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse({"volumes": value})
    assert message in str(caught.value)
    assert str(caught.value).startswith("volumes=")


def test_volumes_survive_in_records() -> None:
    settings = Settings(volumes=(DATA, Volume("out", "/out", "/srv/out", read_only=False)))
    assert settings_from_json(settings_to_json(settings)) == settings


def test_an_asynchronous_endpoint_mounts_nothing() -> None:
    with pytest.raises(InvalidInput, match=r"an asynchronous endpoint mounts none \(data\)"):
        parse({"is_async": True}, base=Settings(volumes=(DATA,)))


@pytest.mark.parametrize("mount", ["/mnt/ann/iris", "/mnt/ann", "/mnt"])
def test_a_volume_that_would_hide_the_project_is_refused(mount: str) -> None:
    config = {"username": "ann", "project": "iris"}
    with pytest.raises(InvalidInput, match="data would hide the project in /mnt/ann/iris"):
        parse({**config, "volumes": [volume(mountPath=mount)]})
    for beside in ("/mnt/ann/iris/data", "/mnt/ann/iris2"):
        assert parse({**config, "volumes": [volume(mountPath=beside)]})[0].volumes[0].mount_path == beside
