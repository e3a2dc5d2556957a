"""Hardware tiers: how much of a machine a replica gets, and of which machines, as ``config.toml`` names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_domino.config import Settings
from mlflow_domino.data_planes.declaration import Declaration, tables
from mlflow_domino.errors import InvalidInput, NotFound
from mlflow_domino.home import Home
from mlflow_domino.parsers import boolean, decimal, size, text, whole

__all__ = ["Tier", "tier_named", "unenforced"]

#: The shortest notice before a Spot machine goes that clouds give, less what it takes to reach the pod.
_NOTICE_S = 25
#: What marks Spot machines, as their clouds do it or recommend to: key and value.
_SPOT_TAINTS = (
    ("cloud.google.com/gke-spot", "true"),
    ("cloud.google.com/gke-preemptible", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
    ("karpenter.sh/capacity-type", "spot"),
)
#: Settings that mean something there alone.
_ON_KUBERNETES = (
    "initial_delay_s", "health_period_s", "health_timeout_s", "failure_threshold", "strict_node_anti_affinity",
    "read_only_root",
)  # fmt: skip
_KEY = r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_VALUE = r"(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?"
_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")


@dataclass(frozen=True)
class Tier:
    """A table ``[hardware_tiers.NAME]``; zero leaves a thing unlimited.

    Attributes
    ----------
    cores : float
    memory : int
        Bytes.
    gpus : int
        Whole devices.
    gpu_key : str
        What the cluster calls such a device.
    node_selector : mapping of str to str
        Labels of the nodes that replicas may run on.
    tolerations : tuple of mapping
        As in a pod: of taints that replicas put up with.
    spot : bool
        Whether its machines can go at short notice.
    spot_notice_s : int
        How short; what a replica has not finished by then is lost with the machine.
    data_plane : str
        The one that has such machines; empty: any.
    """

    cores: float = 0.0
    memory: int = 0
    gpus: int = 0
    gpu_key: str = "nvidia.com/gpu"
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    spot: bool = False
    spot_notice_s: int = _NOTICE_S
    data_plane: str = ""

    @property
    def all_tolerations(self) -> tuple[Mapping[str, Any], ...]:
        """The tolerations, those of a Spot tier among them."""
        spot = (
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in _SPOT_TAINTS
        )
        return (*self.tolerations, *(spot if self.spot else ()))

    def unenforced(self, kind: str) -> tuple[str, ...]:
        """Return the keys that are set and mean nothing on a kind of data plane."""
        meant = {"kubernetes": _PARSERS.keys(), "docker": {"cores", "memory", "gpus", "data_plane"}}
        return tuple(
            key for key in _PARSERS if key not in meant.get(kind, {"data_plane"}) and getattr(self, key) != getattr(Tier(), key)
        )  # fmt: skip


def tier_named(name: str, home: Home, *, plane: str = "") -> Tier:
    """Return a tier; without limits where no name is given.

    Parameters
    ----------
    name : str
        Empty for none.
    home : Home
        Whose ``config.toml`` has the tiers.
    plane : str
        Name of the data plane that it is wanted for, where that matters.

    Raises
    ------
    NotFound
        Naming the tiers that there are.
    InvalidInput
        Naming the key that is wrong, or the data plane that has the tier.
    """
    if not name:
        return Tier()
    known = tables(home.config, "hardware_tiers")
    if name not in known:
        listed = ", ".join(sorted(known)) or "none"
        raise NotFound(f"hardware_tier={name}: {home.config} has no [hardware_tiers.{name}]; there are: {listed}.")
    tier = Tier(**_checked(known[name], f"{home.config}: [hardware_tiers.{name}]"))
    if plane and tier.data_plane and tier.data_plane != plane:
        raise InvalidInput(
            f"hardware_tier={name}: this tier is the data plane {tier.data_plane!r}'s, not {plane!r}'s; "
            f"use -t domino:/{tier.data_plane} or another tier."
        )
    return tier


def unenforced(settings: Settings, home: Home, declaration: Declaration) -> tuple[str, ...]:
    """Return what a person should know of the settings that a data plane does nothing about.

    Raises
    ------
    NotFound, InvalidInput
        As `tier_named`; the local data plane asks for no table, since it enforces nothing.
    """
    kind, name = declaration.kind, settings.hardware_tier
    notes = []
    if name and kind == "local":
        notes.append(f"hardware_tier={name} limits nothing here: replicas share this machine")
    elif name:
        keys = tier_named(name, home, plane=declaration.name).unenforced(kind)
        notes += [f"hardware_tier={name}: nothing here enforces {', '.join(keys)}"] if keys else []
    if kind != "kubernetes":
        ours = [key for key in _ON_KUBERNETES if getattr(settings, key) != getattr(Settings(), key)]
        notes += [f"{', '.join(ours)}: for Kubernetes only; here replicas look after themselves"] if ours else []
    if kind == "local":
        others = [v for v in settings.volumes if v.mount_path != v.path]
        notes += [f"volumes: nothing is mounted here, where {v.mount_path} is {v.path} itself" for v in others]
    return tuple(notes)


def _checked(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    values = {}
    for key, value in table.items():
        if key not in _PARSERS:
            raise InvalidInput(f"{where} unknown key {key!r}; there are: {', '.join(_PARSERS)}.")
        try:
            values[key] = _PARSERS[key](value)
        except ValueError as error:
            raise InvalidInput(f"{where} {key} = {value!r}: {error}.") from None
    return values


def _node_selector(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError('labels such as { pool = "gpu" } are wanted')
    for key, label in value.items():
        if not re.fullmatch(_KEY, str(key)) or not isinstance(label, str) or not re.fullmatch(_VALUE, label):
            raise ValueError(f"{key} = {label!r} is no label of a node")
    return dict(value)


def _tolerations(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(v, Mapping) for v in value):
        raise ValueError('a list such as [{ key = "gpu", operator = "Exists", effect = "NoSchedule" }] is wanted')
    return tuple(_toleration(item) for item in value)


def _toleration(item: Mapping[str, Any]) -> Mapping[str, Any]:
    given = {"tolerationSeconds" if key == "toleration_seconds" else key: value for key, value in item.items()}
    for key, value in given.items():
        right = _TOLERATION.get(key)
        if right is None:
            raise ValueError(f"a toleration has the keys {', '.join(_TOLERATION)}, not {key!r}")
        if not right(value):
            raise ValueError(f"{key} = {value!r} is wrong in a toleration")
    if given.get("operator") == "Exists" and given.get("value"):
        raise ValueError("a toleration with the operator Exists has no value")
    if not given.get("key") and given.get("operator") != "Exists":
        raise ValueError("a toleration without a key has the operator Exists")
    if "tolerationSeconds" in given and given.get("effect") != "NoExecute":
        raise ValueError("a toleration with tolerationSeconds has the effect NoExecute")
    return given


def _matches(pattern: str) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


_TOLERATION: Mapping[str, Callable[[Any], bool]] = {
    "key": _matches(f"(?:{_KEY})?"),
    "operator": lambda value: value in ("Exists", "Equal"),
    "value": _matches(_VALUE),
    "effect": lambda value: value in _EFFECTS,
    "tolerationSeconds": lambda value: type(value) is int and value >= 0,
}
_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "cores": decimal(0.01, 1024),
    "memory": size(6 << 20, 1 << 44),
    "gpus": whole(0, 64),
    "gpu_key": text(rf"(?=.*/){_KEY}", "a name such as nvidia.com/gpu"),
    "node_selector": _node_selector,
    "tolerations": _tolerations,
    "spot": boolean,
    "spot_notice_s": whole(5, 3600),
    "data_plane": text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", "a data plane's name"),
}
