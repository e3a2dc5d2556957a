"""The gateway's pods as a whole: what all of them have accepted, what is in flight in them, and what ails them."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_domino.cluster import Cluster
from mlflow_domino.dialect import Manifest
from mlflow_domino.errors import DominoError, GatewayFailed, NotFound
from mlflow_domino.gateway.pulse import accepted
from mlflow_domino.gateway.surroundings import WATCHER_PORT
from mlflow_domino.labels import GENERATION_MAP, PROBLEM, RELEASE, labels, lease_name

__all__ = ["Fleet", "meant_to_run", "rolled_out", "runs", "unmade"]

_CONTAINER = "gateway"
_LOOK_S = 0.02
_PODS_S = 0.5
#: How long a pod that is ending is waited for: nobody sends it requests after that.
_ENDING_S = 5.0
_ASK_S = 3.0
_TAIL_LINES = 30
#: Why a container does not run, however long one waits.
_HOPELESS = ("ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError",
             "CreateContainerError", "RunContainerError", "CrashLoopBackOff")  # fmt: skip


class Fleet:
    """The pods of a namespace's gateway.

    Parameters
    ----------
    cluster : Cluster
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def publish(self, silent: Sequence[str], *, timeout_s: float, awaited: bool) -> None:
        """Have every gateway read the records as they are now; return when each has accepted them.

        Parameters
        ----------
        silent : sequence of str
            Ids of endpoints whose callers get 503 meanwhile, whatever their records say.
        awaited : bool
            Whether there is to be a gateway; without one nobody is waited for.

        Raises
        ------
        GatewayFailed
            One of them did not in time; with its own reason.
        """
        generation = self._write(silent)
        begun = time.monotonic()
        pods, looked = self._pods(), begun
        while awaited:
            late = self._late(pods, generation, ending=time.monotonic() - begun < _ENDING_S)
            if not late and any(map(_ready, pods)):
                return
            now = time.monotonic()
            if now - begun > timeout_s:
                raise GatewayFailed(self._reason(pods, late, timeout_s), log_tail=self._log_tail(late or pods))
            time.sleep(_LOOK_S)
            if now - looked > _PODS_S:
                pods, looked = self._pods(), now

    def silent(self) -> tuple[str, ...]:
        """Return the endpoints that the last `publish` silenced."""
        found = (self._cluster.get("ConfigMap", GENERATION_MAP) or {}).get("data") or {}
        return tuple(filter(None, str(found.get("silent", "")).split(",")))

    def active(self, version_id: str) -> int:
        """Return how many requests are at a version or wait for it, in all gateways; one too many where one does not say."""
        return sum(self._active(pod, version_id) for pod in self._pods())

    def _active(self, pod: Manifest, version_id: str) -> int:
        name = pod["metadata"]["name"]
        try:
            status, _, body = self._cluster.proxy(name, WATCHER_PORT, f"/active/{version_id}", timeout_s=_ASK_S)
            return int(body) if status == 200 else 1
        except NotFound:
            return 0
        except (DominoError, ValueError):
            return 1 if _ready(pod) else 0  # one that is not ready may hang as long as it likes

    def ready(self) -> int:
        """Return how many gateways take requests."""
        return sum(map(_ready, self._pods()))

    def releases(self) -> list[str]:
        """Return the releases that run."""
        shown = {str((pod["metadata"].get("annotations") or {}).get(RELEASE, "")) for pod in self._pods()}
        return sorted(filter(None, shown))

    def obstacle(self) -> str:
        """Say what keeps the pods of whichever release from taking requests; empty where one takes them."""
        found = self._cluster.list("Pod", labels("gateway"))
        if any(map(_ready, found)):
            return ""
        releases = {str((pod["metadata"].get("annotations") or {}).get(RELEASE, "")) for pod in found}
        said = next(filter(None, (self.trouble(r) or self.state(r) for r in sorted(releases))), "")
        return f"no pod of the gateway takes requests{f': {said}' if said else ''}"

    def trouble(self, release: str) -> str:
        """Return why pods of a release cannot come up, however long one waits; empty while they still may."""
        for pod in self._unready(release):
            waiting = _waiting(pod)
            if waiting.get("reason") in _HOPELESS:
                return f"{waiting['reason']}: {_last_words(pod) or waiting.get('message') or 'it does not say why'}"
        return ""

    def state(self, release: str) -> str:
        """Return, for whoever waits, what the pods of a release are doing."""
        for pod in self._unready(release):
            scheduled = _condition(pod, "PodScheduled")
            if scheduled.get("status") == "False":
                return f"no node has a place for it: {scheduled.get('message') or scheduled.get('reason')}"
            waiting = _waiting(pod)
            return str(waiting.get("message") or waiting.get("reason") or self._unfit(pod))
        return ""

    def log_tail(self, release: str) -> str:
        """Return the end of the log of a gateway of a release that does not come up."""
        return self._log_tail(self._unready(release))

    def _log_tail(self, pods: Sequence[Manifest]) -> str:
        for pod in pods:
            with contextlib.suppress(DominoError):
                name = pod["metadata"]["name"]
                last = self._cluster.pod_log(name, _CONTAINER, tail=_TAIL_LINES, previous=bool(_waiting(pod)))
                return last or self._cluster.pod_log(name, _CONTAINER, tail=_TAIL_LINES)
        return ""

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _write(self, silent: Sequence[str]) -> int:
        found = (self._cluster.get("ConfigMap", GENERATION_MAP) or {}).get("data") or {}
        before = str(found.get("generation", ""))
        generation = max(time.time_ns() // 1000, int(before) + 1 if before.isdecimal() else 0)
        meta = {"name": GENERATION_MAP, "labels": labels("generation")}
        data = {"generation": str(generation), "silent": ",".join(sorted(silent))}
        self._cluster.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": data})
        return generation

    def _pods(self) -> list[Manifest]:
        """Return the pods in which a gateway runs."""
        return [pod for pod in self._cluster.list("Pod", labels("gateway")) if pod["status"].get("phase") == "Running"]

    def _unready(self, release: str) -> list[Manifest]:
        """Return the pods of a release that are meant to come up, and have not."""
        found = self._cluster.list("Pod", labels("gateway"))
        return [
            pod
            for pod in found
            if (pod["metadata"].get("annotations") or {}).get(RELEASE) == release
            and not _ready(pod)
            and not pod["metadata"].get("deletionTimestamp")
            and pod["status"].get("phase") in ("Pending", "Running")
        ]

    def _late(self, pods: Sequence[Manifest], generation: int, *, ending: bool) -> list[Manifest]:
        """Return the pods that get requests and have not accepted a generation."""
        leases = {one["metadata"]["name"]: one for one in self._cluster.list("Lease", labels("gateway"))}
        late = []
        for pod in pods:
            lease = leases.get(lease_name(pod["metadata"]["name"]))
            behind = lease is None or accepted(lease) < generation
            counts = ending if pod["metadata"].get("deletionTimestamp") else _ready(pod)
            if behind and counts:
                late.append(pod)
        return late

    def _reason(self, pods: Sequence[Manifest], late: Sequence[Manifest], timeout_s: float) -> str:
        if not late:
            return (
                f"No pod of the gateway was ready within {timeout_s:g} s; `kubectl get pods -l "
                f"{','.join(f'{k}={v}' for k, v in labels('gateway').items())}` shows them."
            )
        problems = []
        for pod in late:
            name = pod["metadata"]["name"]
            lease = self._cluster.get("Lease", lease_name(name)) or {"metadata": {}}
            said = (lease["metadata"].get("annotations") or {}).get(PROBLEM)
            problems.append(f"{name}{f' says: {said}' if said else ''}")
        return f"Not every gateway took its new routes within {timeout_s:g} s: {'; '.join(problems)}"

    def _unfit(self, pod: Manifest) -> str:
        with contextlib.suppress(DominoError):
            return self._cluster.proxy(pod["metadata"]["name"], WATCHER_PORT, "/ready", timeout_s=_ASK_S)[2].decode()
        return ""


def meant_to_run(deployment: Manifest) -> bool:
    """Whether a Deployment is to have pods."""
    return int(deployment["spec"].get("replicas", 1)) > 0


def rolled_out(deployment: Manifest) -> bool:
    """Whether all pods of a Deployment are of its newest kind, and take requests."""
    status, wanted = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return False
    return bool(
        wanted == status.get("updatedReplicas", 0) == status.get("replicas", 0) == status.get("availableReplicas", 0)
    )


def unmade(deployment: Manifest) -> str:
    """Return why pods cannot even be made, such as for want of quota."""
    conditions = (deployment.get("status") or {}).get("conditions") or ()
    failure = next((c for c in conditions if c["type"] == "ReplicaFailure" and c["status"] == "True"), None)
    return str(failure.get("message", "")) if failure else ""


def runs(pod: Manifest) -> bool:
    """Whether a container of a pod runs."""
    containers = pod["status"].get("containerStatuses") or ()
    return any("running" in (container.get("state") or {}) for container in containers)


def _ready(pod: Mapping[str, Any]) -> bool:
    return _condition(pod, "Ready").get("status") == "True" and not pod["metadata"].get("deletionTimestamp")


def _condition(pod: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    found: Sequence[Mapping[str, Any]] = pod["status"].get("conditions") or ()
    return next((c for c in found if c["type"] == kind), {})


def _container(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Sequence[Mapping[str, Any]] = pod["status"].get("containerStatuses") or ()
    return next((c for c in found if c["name"] == _CONTAINER), {})


def _waiting(pod: Mapping[str, Any]) -> Mapping[str, Any]:
    waiting: Mapping[str, Any] = (_container(pod).get("state") or {}).get("waiting") or {}
    return waiting


def _last_words(pod: Mapping[str, Any]) -> str:
    ended = (_container(pod).get("lastState") or {}).get("terminated") or {}
    if not ended:
        return ""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return str(json.loads(ended.get("message") or "")["reason"])
    said = str(ended.get("message") or "").strip().splitlines()
    return said[-1] if said else f"its container ended with code {ended.get('exitCode')}"
