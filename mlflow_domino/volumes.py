"""Folders of the machine that a replica runs on, mounted into it: the setting `volumes`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlflow_domino.parsers import boolean

__all__ = ["Volume", "volumes", "volumes_from_json"]

_MOST = 16
_NAME = re.compile(r"(?!domino-)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PATH = re.compile(r"/[^\x00-\x1f:]{0,1023}")  # ':' parts the words of a mount, on Docker and on Kubernetes
#: What replicas are made of, and what the kernel shows of itself.
_OURS = ("/", "/dev", "/etc", "/opt/domino", "/proc", "/run/domino", "/sys", "/tmp")  # noqa: S108 - refused, not used
_WHOLE = ("/", "/etc", "/tmp")  # noqa: S108 - refused, not used; folders in them may be mounted
_KEYS = {
    "name": "name",
    "mount_path": "mount_path",
    "mountPath": "mount_path",
    "path": "path",
    "read_only": "read_only",
    "readOnly": "read_only",
    "volume_type": "volume_type",
    "volumeType": "volume_type",
}
_EXAMPLE = '[{"name": "data", "mountPath": "/data", "path": "/srv/data", "readOnly": true}]'


@dataclass(frozen=True)
class Volume:
    """A folder of the node, as Domino's own volumes: hostPath and nothing else.

    Attributes
    ----------
    name : str
    mount_path : str
        Where the replica sees it.
    path : str
        Where it is on the node.
    read_only : bool
        Unless the caller says otherwise.
    """

    name: str
    mount_path: str
    path: str
    read_only: bool = True


def volumes(value: Any) -> tuple[Volume, ...]:
    """List of volumes {name, mountPath, path, readOnly}"""
    items = _read(value) if isinstance(value, str) else value
    if isinstance(items, Mapping):
        items = [items]
    if not isinstance(items, Sequence) or isinstance(items, str) or not all(isinstance(i, Mapping) for i in items):
        raise ValueError(f"a list such as {_EXAMPLE} is wanted")
    if len(items) > _MOST:
        raise ValueError(f"at most {_MOST} volumes are wanted")
    found = tuple(_volume(item) for item in items)
    for attribute, word in (("name", "name"), ("mount_path", "mount path")):
        known = [getattr(volume, attribute) for volume in found]
        twice = next((k for k in known if known.count(k) > 1), None)
        if twice is not None:
            raise ValueError(f"two volumes have the {word} {twice}")
    return found


def volumes_from_json(document: Sequence[Mapping[str, Any]]) -> tuple[Volume, ...]:
    """Return the volumes of settings that some release wrote."""
    names = {"name", "mount_path", "path", "read_only"}
    return tuple(Volume(**{key: item[key] for key in names & set(item)}) for item in document)


def _read(value: str) -> Any:
    import yaml  # only here: most endpoints have no volumes

    if not value.strip():
        return ()
    try:
        return yaml.safe_load(value)  # what is JSON is YAML too
    except yaml.YAMLError:
        return None


def _volume(item: Mapping[str, Any]) -> Volume:
    name = item.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"the name of a volume has lower-case letters, digits and '-', not {name!r}; names with domino- are ours"
        )
    values: dict[str, Any] = {}
    for key, given in item.items():
        if key not in _KEYS:
            raise ValueError(f"volume {name!r}: only hostPath volumes are supported, with the keys name, mountPath, path "
                             f"and readOnly; {key!r} is none of these")  # fmt: skip
        values[_KEYS[key]] = given
    kind = values.pop("volume_type", "hostPath")
    if not isinstance(kind, str) or kind.lower() != "hostpath":
        raise ValueError(f"volume {name!r}: only hostPath volumes are supported, not {kind!r}")
    for key in ("mount_path", "path"):
        values[key] = _path(name, key, values.get(key))
    mount = values["mount_path"]
    if mount in _OURS or any(mount.startswith(f"{ours}/") for ours in _OURS if ours not in _WHOLE):
        raise ValueError(f"volume {name!r}: {mount} is the replica's own; mount it elsewhere, such as at /data")
    if "read_only" in values:
        values["read_only"] = boolean(values["read_only"])
    return Volume(**values)


def _path(name: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value) or ".." in value.split("/"):
        raise ValueError(f"volume {name!r}: {key} is an absolute path without '..' and ':', not {value!r}")
    return posixpath.normpath("/" + value.lstrip("/"))
