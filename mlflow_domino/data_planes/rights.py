"""The rights that people need in a namespace: to deploy, and to install the gateway; asked of the cluster, never assumed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mlflow_domino.cluster import Cluster
from mlflow_domino.data_planes.declaration import Declaration
from mlflow_domino.dialect import Manifest, kind_of

__all__ = ["DEPLOY", "Right", "lacking", "to_install", "told"]

_AT_ONCE = 8


@dataclass(frozen=True)
class Right:
    """Verbs on a kind of objects, or on a part of them such as a pod's log."""

    kind: str
    verbs: tuple[str, ...]
    part: str = ""

    def rule(self) -> Manifest:
        """Return what grants it, as in a Role."""
        kind = kind_of(self.kind)
        resource = f"{kind.plural}/{self.part}" if self.part else kind.plural
        return {"apiGroups": [kind.group], "resources": [resource], "verbs": list(self.verbs)}


#: Of whoever creates, changes and deletes endpoints.
DEPLOY = (
    Right("ConfigMap", ("get", "list", "create", "update", "delete")),
    Right("Secret", ("get", "list", "create", "update", "patch", "delete")),
    Right("Lease", ("get", "list", "create", "update", "delete")),
    Right("Deployment", ("get", "list", "create", "update", "patch", "delete")),
    Right("Service", ("get", "create", "update", "delete")),
    Right("PodDisruptionBudget", ("get", "create", "update", "delete")),
    Right("ReplicaSet", ("list", "delete")),
    Right("Pod", ("list", "patch", "delete")),
    Right("Pod", ("get",), "log"),
    Right("Pod", ("get",), "proxy"),
    Right("Event", ("list",)),
)
_INSTALL = (
    Right("ServiceAccount", ("get", "create", "update", "delete")),
    Right("Role", ("get", "create", "update", "delete")),
    Right("RoleBinding", ("get", "create", "update", "delete")),
    Right("ConfigMap", ("watch",)),
    Right("EndpointSlice", ("get", "list", "watch")),
    Right("Lease", ("patch",)),
)


def to_install(declaration: Declaration) -> tuple[Right, ...]:
    """Return the rights of whoever installs the gateway, beside `DEPLOY`.

    Nobody may grant what they do not have: those of the gateway's own Role are among them.
    """
    ingress = Right("Ingress", ("get", "create", "update", "delete"))
    return (*_INSTALL, ingress) if declaration.expose == "ingress" else _INSTALL


def lacking(cluster: Cluster, wanted: Iterable[Right]) -> list[Right]:
    """Return what of some rights we do not have, in their order."""
    asked = [(right, verb) for right in wanted for verb in right.verbs]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        granted = list(pool.map(lambda pair: cluster.may(pair[1], pair[0].kind, pair[0].part), asked))
    found: dict[Right, list[str]] = {}
    for (right, verb), yes in zip(asked, granted, strict=True):
        if not yes:
            found.setdefault(right, []).append(verb)
    return [Right(right.kind, tuple(verbs), right.part) for right, verbs in found.items()]


def told(rights: Sequence[Right]) -> str:
    """Return rights in words: ``create, update Deployment; get Pod/log``."""
    return "; ".join(f"{', '.join(r.verbs)} {r.kind}{f'/{r.part}' if r.part else ''}" for r in rights)
